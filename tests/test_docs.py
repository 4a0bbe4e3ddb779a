"""What the documentation names is there: links, configs, workflows, keys, scripts, code."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "bundle" / "docs").glob("*.md"))]
#: Options of MONAI's command itself.
OF_MONAI = {"run_id", "init_id", "final_id", "config_file", "meta_file", "logging_file", "tracking", "args_file"}
OF_MONAI |= {"workflow_name", "workflow_type"}

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


def commands(text: str, program: str = "monai.bundle run") -> list[list[str]]:
    """Arguments of every ``python -m monai.bundle run`` in fenced blocks and in inline code, continued lines joined.

    With another ``program`` what follows that.
    """
    code = re.findall(r"```\w*\n(.*?)```", text, re.S)
    code += re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.S))
    found = []
    for block in code:
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if program in line:
                found.append(shlex.split(line.split(program, 1)[1], comments=True))
    return found


def parse(words: list[str]) -> tuple[str, list[str], list[str]]:
    """Workflow id, config files, and the other options of one command."""
    name = words[0] if words and not words[0].startswith("-") else "run"
    options = {w[2:]: words[i + 1] if i + 1 < len(words) else "" for i, w in enumerate(words) if w.startswith("--")}
    given = options.get("config_file", "")
    files = ast.literal_eval(given) if given.startswith("[") else [given] if given else []
    return name, files, [key for key in options if key not in OF_MONAI]


def merged_keys(files: list[str]) -> set[str]:
    """Top-level keys of these configs together."""
    keys: set[str] = set()
    for file in files:
        path = CONFIGS / Path(file).name
        keys |= {key.lstrip("+").split("#")[0] for key in json.loads(path.read_text(encoding="utf-8"))}
    return keys


def problems(words: list[str]) -> list[str]:
    """What is wrong with one command."""
    name, files, options = parse(words)
    if not files:
        return [] if "--args_file" in words or words == ["..."] else ["no --config_file"]
    ours = [file for file in files if Path(file).parent.name == "configs"]
    missing = [file for file in ours if not (CONFIGS / Path(file).name).is_file()]
    if missing:
        return [f"no such config: {missing}"]
    keys = merged_keys(ours)
    unknown = [key for key in options if key.split("#")[0] not in keys]
    return [f"no workflow {name!r}"] * (name not in keys) + [f"no key {key!r}" for key in unknown]


def test_the_reader_of_commands_finds_mistakes():
    listed = "\"['configs/train.json',\\\n  'configs/nope.json']\""
    text = f"```bash\npython -m monai.bundle run trainin --config_file {listed}\n```"
    (words,) = commands(text)
    assert problems(words) == ["no such config: ['configs/nope.json']"]
    (words,) = commands("`python -m monai.bundle run trainin --config_file configs/train.json --rnk 3`")
    assert problems(words) == ["no workflow 'trainin'", "no key 'rnk'"]
    assert not problems(["training", "--config_file", "configs/train.json", "--rank", "3"])


@by_page
def test_commands_name_configs_workflows_and_keys_that_exist(page):
    wrong = {
        " ".join(words): found for words in commands(page.read_text(encoding="utf-8")) if (found := problems(words))
    }
    assert not wrong


def test_the_readme_shows_the_workflows():
    names = {parse(words)[0] for words in commands((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert {"training", "evaluating", "run", "export", "cross_validating"} <= names


@by_page
def test_relative_links_resolve(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]+)?\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor and linked.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor[1:] in anchors, f"{page.name}: {target}{anchor}"


@by_page
def test_scripts_and_configs_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for script in set(re.findall(r"\bscripts/[\w/]+\.(?:py|sh)\b", text)):
        assert (ROOT / script).is_file(), script
    for config in set(re.findall(r"\bconfigs/(\w+\.json)\b", text)):
        assert (CONFIGS / config).is_file(), config


def options_of(script: Path) -> set[str]:
    """Options that a script gives to argparse, and those of the scripts it imports."""
    found = set()
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and str(a.value).startswith("--")}
        elif isinstance(node, ast.ImportFrom) and (script.parent / f"{node.module}.py").is_file():
            found |= options_of(script.parent / f"{node.module}.py")
    return found


def unknown_options(words: list[str]) -> list[str]:
    """Options of ``NAME.py --option ...`` that the script does not have."""
    known = options_of(ROOT / "scripts" / words[0]) | {"--help"}
    return [word for word in words if word.startswith("--") and word.split("=")[0] not in known]


def test_unknown_options_of_scripts_are_found():
    (words,) = commands("`python scripts/convert.py t.csv --output o --wrkers 3`", "python scripts/")
    assert unknown_options(words) == ["--wrkers"]


@by_page
def test_scripts_are_called_with_options_they_have(page):
    called = commands(page.read_text(encoding="utf-8"), "python scripts/")
    wrong = {" ".join(words): found for words in called if (found := unknown_options(words))}
    assert not wrong


def resolve(name: str) -> Any:
    """A dotted name below ``cpic_monai``; a field of a dataclass counts."""
    parts = name.split(".")
    found: Any = importlib.import_module(f"cpic_monai.{parts[0]}")
    for n, part in enumerate(parts[1:], 1):
        if dataclasses.is_dataclass(found) and part in {field.name for field in dataclasses.fields(found)}:
            return part
        if not hasattr(found, part):
            importlib.import_module("cpic_monai." + ".".join(parts[: n + 1]))
        found = getattr(found, part)
    return found


def test_the_map_from_paper_to_code_names_code_that_exists():
    text = (ROOT / "bundle" / "docs" / "concepts.md").read_text(encoding="utf-8")
    modules = {path.stem for path in (ROOT / "cpic_monai").iterdir()}
    names = {n for n in re.findall(r"`([a-z_]+(?:\.\w+)+)", text) if n.split(".")[0] in modules}
    assert len(names) > 50
    for name in sorted(names):
        resolve(name)


def test_the_reference_of_the_configs_is_up_to_date():
    done = subprocess.run(
        [sys.executable, "scripts/config_reference.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

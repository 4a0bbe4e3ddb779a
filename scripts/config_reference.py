"""Write bundle/docs/configuration.md: every key of every config, its default and its meaning, from the configs alone.

``--check`` writes nothing, and fails if the page is not what the configs say.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Mapping
from operator import getitem
from pathlib import Path
from typing import Any

from cpic_monai.atomic import write_text_atomically

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "bundle" / "docs" / "configuration.md"
SOURCE = "%configs/"
#: Not configs of a workflow: MONAI's metadata has a schema of its own.
LEFT_OUT = ("metadata.json",)
MAIN = "train.json"
#: Workflows of their own, behind the overlays on the page.
LAST = ("evaluate.json", "inference.json", "cross_validate.json")
#: What overlays overlay.
BASES = (MAIN, "evaluate.json", "inference.json")
LONGEST = 90

HEAD = """# Configuration

Written by `python scripts/config_reference.py` from the configs' own `_about_`; `--check` says whether it is fresh.

A key is set on the command line (`--rank 20`, `--cohort_csv study.csv`, `--tabular_columns "['sex']"`; booleans are
`True` and `False`), or in a file of your own behind the others:
`--config_file "['configs/train.json','mine.json']"`. `a#b#0` is element 0 of `b` in `a`; `+key` adds to a list or
dictionary instead of replacing it; `@key` is the value of another key, `$...` a Python expression. A class is
shown without its arguments, and what is long by its kind: open the file to see it.

Order of the files: the workflow (`train`, `evaluate` or `inference`), the cohort (`table`, `inference_table`,
`brats`), `ct`, `align`, the method (`small_cohort`, `tangent`, `paper`, `resnet`, the controls, ...), the task
(`classify`, `survival`) or the report's baselines (`ridge`, `crop_shape`), `calibrate`, `finetune`, then how it runs
(`cache`, `gpu`, `multi_gpu_train`), then your own. Baselines and `resnet` predict quantiles: with a task they are
refused.
"""


def configs(folder: Path) -> list[Path]:
    """The configs in the order of the page: training, overlays, other workflows."""
    found = {path.name: path for path in sorted(folder.glob("*.json")) if path.name not in LEFT_OUT}
    overlays = sorted(name for name in found if name != MAIN and name not in LAST)
    return [found[name] for name in (MAIN, *overlays, *LAST) if name in found]


def is_taken(value: Any) -> bool:
    """Whether a value is a macro that takes it from another config."""
    return isinstance(value, str) and value.startswith(SOURCE)


def class_name(value: Mapping[str, Any]) -> str:
    """The class that a dictionary describes, without its module; taken from the other config if it is a macro."""
    target = value["_target_"]
    if target.startswith("%"):
        path, *keys = target.removeprefix("%").split("::")
        target = functools.reduce(getitem, keys, json.loads((ROOT / path).read_text(encoding="utf-8")))
    return f"`{target.split('.')[-1]}`"


def shown(value: Any) -> str:
    """A default as a cell of the table."""
    if isinstance(value, dict) and "_target_" in value:
        return class_name(value)
    if isinstance(value, list) and value and all(isinstance(v, dict) and "_target_" in v for v in value):
        return ", ".join(map(class_name, value))
    text = value if isinstance(value, str) and value.startswith(("$", "@", "%")) else json.dumps(value)
    if len(text) <= LONGEST:
        return f"`{text}`" if "`" not in text else text
    if isinstance(value, str):
        return "an expression"
    return "a list" if isinstance(value, list) else "a dictionary"


def cell(text: str) -> str:
    """Text that cannot end a cell or a row, and keeps its line."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def plain(text: str) -> str:
    """Text of an `_about_` in which ``<name>`` is seen and not taken for HTML."""
    return text.replace("<", "&lt;")


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell(c) for c in line)} |" for line in lines)


def base_of(overlay: dict[str, Any], everything: dict[str, dict[str, Any]]) -> str:
    """The config that an overlay is for: it has most of its keys; of several the one that `_about_` names first."""
    about = overlay["_about_"].get("_about_", "")
    roots = {key.lstrip("+").split("#")[0] for key in overlay}

    def fit(name: str) -> tuple[int, int]:
        place = about.find(name)
        return len(roots & set(everything[name])), -(place if place >= 0 else len(about) + BASES.index(name))

    return max(BASES, key=fit)


def section(path: Path, everything: dict[str, dict[str, Any]]) -> str:
    """One config: what it is for, what it changes, a row a key."""
    config = everything[path.name]
    about: dict[str, str] = config["_about_"]
    own = {key: value for key, value in config.items() if key != "_about_"}
    train = everything[MAIN]
    parts = [f"## `configs/{path.name}`", plain(about.get("_about_", ""))]
    taken = [key for key, value in own.items() if is_taken(value)]
    rows: list[tuple[str, ...]] = []
    for key, value in own.items():
        if key in taken and key not in about:
            continue
        name = key.lstrip("+")
        meaning = about.get(key) or train["_about_"].get(name, "")
        if not meaning:
            raise ValueError(f"configs/{path.name}: key {key!r} has no meaning in its `_about_`, nor in {MAIN}'s")
        rows.append((f"`{key}`", shown(value), plain(meaning)))
    parts.append(table(("key", "default", "meaning"), rows))
    if path.name not in (MAIN, *LAST):
        base = base_of(config, everything)
        there = everything[base]
        known = [f"`{key}`" for key in own if key.lstrip("+").split("#")[0] in there]
        new = [f"`{key}`" for key in own if f"`{key}`" not in known]
        parts.append(
            f"Over `{base}`: changes {', '.join(known) or 'nothing'}" + (f"; adds {', '.join(new)}." if new else ".")
        )
    if same := [key for key in taken if key not in about]:
        parts.append(f"Taken from `{MAIN}` as they are: {', '.join(f'`{k}`' for k in same)}.")
    return "\n\n".join(part for part in parts if part)


def page(folder: Path) -> str:
    """The whole page.

    Raises
    ------
    ValueError
        If a key is explained nowhere.
    """
    paths = configs(folder)
    everything = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    links = [f"[`{p.name}`](#configs{p.name.replace('.', '')})" for p in paths]
    head = HEAD + f"\nFiles: {', '.join(links)}."
    return "\n\n".join([head, *(section(path, everything) for path in paths)]) + "\n"


def main() -> int:
    """Write the page, or compare it with the configs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if the page is not up to date; write nothing")
    arguments = parser.parse_args()
    text = page(ROOT / "configs")
    if not arguments.check:
        write_text_atomically(PAGE, text)
        print(f"{PAGE.relative_to(ROOT)}: {text.count(chr(10))} lines")
        return 0
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE.relative_to(ROOT)} is not up to date: run python scripts/config_reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Imports point the way the data flows, and files stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import cpic_monai

PACKAGE = Path(cpic_monai.__file__).parent
ROOT = PACKAGE.parent
MOST_LINES = 320

SCANS = ("atomic", "grid", "volumes", "transforms")
NETWORK = ("grid", "tensor_train", "cross", "networks")
REST = (
    "distributed", "losses", "metrics", "batches", "inferers", "engines", "handlers",
    "cohorts", "report", "calibration", "tasks", "tracking", "export", "serving", "attribution", "evaluation",
    "finetune", "baselines", "cross_validation", "label", "explaining",
)  # fmt: skip

ALLOWED: dict[str, frozenset[str]] = {}
for branch in (SCANS, NETWORK):
    for n, part in enumerate(branch):
        ALLOWED[part] = frozenset(branch[: n + 1])
for n, part in enumerate(REST):
    ALLOWED[part] = frozenset((*SCANS, *NETWORK, *REST[: n + 1]))

FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    """Top-level package or module, e.g. ``cross``."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_parts(source: str, package: tuple[str, ...]) -> set[str]:
    """Parts of ``cpic_monai`` that a file of ``package`` imports, also inside functions and relatively."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("cpic_monai.")}
    return found


def test_the_reader_of_imports_sees_every_form() -> None:
    source = (
        "import cpic_monai.grid\nfrom cpic_monai import losses\nfrom cpic_monai.cross.bank import X\n"
        "def f():\n    from ..label import Y\n    from .core import Z\nimport os\n"
    )
    package = ("cpic_monai", "tensor_train")
    assert imported_parts(source, package) == {"grid", "losses", "cross", "label", "tensor_train"}


def test_every_part_has_its_place() -> None:
    parts = {part_of(file) for file in FILES} - {"__init__"}
    assert parts == set(ALLOWED) & parts, f"name the place of {sorted(parts - set(ALLOWED))} in the flow"
    assert {"grid", "volumes", "cross", "networks", "handlers", "cohorts", "report"} <= parts


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_never_point_back(file: Path) -> None:
    package = ("cpic_monai", *file.relative_to(PACKAGE).parts[:-1])
    found = imported_parts(file.read_text(encoding="utf-8"), package)
    allowed = ALLOWED.get(part_of(file), frozenset())
    assert found <= allowed, f"{part_of(file)} may not import {sorted(found - allowed)}"


def test_files_stay_small() -> None:
    long = {}
    for folder in ("cpic_monai", "scripts", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            lines = len(file.read_text(encoding="utf-8").splitlines())
            if lines > MOST_LINES:
                long[str(file.relative_to(ROOT))] = lines
    assert not long, f"more than {MOST_LINES} lines: split by concept"

"""Compare two evaluations of the same patients: one page, the same as Markdown and as JSON.

Each folder is one that an evaluation has written (predictions.csv and report.json). Every metric's difference, second
minus first, comes with a paired interval over patients. Evaluations of different patients are refused, naming them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cpic_monai.report import Evaluated, write_comparison


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="folder of the first evaluation")
    parser.add_argument("second", type=Path, help="folder of the second evaluation")
    parser.add_argument("--output", type=Path, required=True, help="folder that comparison.html, .md, .json go to")
    parser.add_argument("--names", nargs=2, metavar=("FIRST", "SECOND"), help="what the two are called on the page")
    parser.add_argument("--split", help="split to compare; default: test, else validation, else the last one")
    parser.add_argument("--seed", type=int, default=0, help="of the patients drawn for the intervals")
    return parser


def _names(first: Path, second: Path) -> tuple[str, str]:
    """The folders' last parts that differ: a/eval and b/eval are called a and b."""
    one, other = first.resolve().parts, second.resolve().parts
    k = -1
    while -k < min(len(one), len(other)) and one[k] == other[k]:
        k -= 1
    return one[k], other[k]


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    given = _parser().parse_args(arguments)
    names = given.names or _names(given.first, given.second)
    try:
        first, second = (
            Evaluated.read(folder, name) for folder, name in zip((given.first, given.second), names, strict=True)
        )
        page = write_comparison(given.output, first, second, split=given.split, seed=given.seed)
    except (FileNotFoundError, ValueError) as fault:
        print(f"compare_reports: {fault}", file=sys.stderr)
        return 1
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Rows of a benchmark as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], digits: int = 3) -> str:
    """One line a row; floats to ``digits`` significant ones, and nothing where a row lacks a column."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [f"{row[n]:.{digits}g}" if isinstance(row.get(n), float) else str(row.get(n, "")) for n in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)

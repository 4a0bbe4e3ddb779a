"""What a cohort is, as a reader wants it, and the rows that could not be used, for those who will mend them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cpic_monai.atomic import write_text_atomically

__all__ = ["cohort_facts", "write_left_out"]

LISTED = 8


def write_left_out(cohort: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """
    Write ``left_out.csv``, columns ``subject`` and ``reason``, in the order of the cohort.

    Parameters
    ----------
    cohort : mapping
        See :meth:`cpic_monai.cohorts.Cohort.describe`. Where nothing is left out, a file of an earlier run is removed.
    path : path
    """
    rows = list(cohort.get("left_out") or ())
    if not rows:
        Path(path).unlink(missing_ok=True)
        return
    table = pd.DataFrame(rows, columns=["subject", "reason"])
    write_text_atomically(path, table.to_csv(index=False, lineterminator="\n"))


def cohort_facts(cohort: Mapping[str, Any]) -> dict[str, Any]:
    """A cohort's description as a reader wants it: what was left out and altered in words, if anything was."""
    facts = {key: value for key, value in cohort.items() if key not in ("left_out", "notes", "tabular")}
    left_out = [f"{entry['subject']} ({entry['reason']})" for entry in cohort.get("left_out", ())]
    for name, entries in (("left out", left_out), ("notes", list(cohort.get("notes", ())))):
        if entries:
            facts[name] = "; ".join(entries[:LISTED])
            if len(entries) > LISTED:
                facts[name] += f" and {len(entries) - LISTED} more"
    for column, summary in cohort.get("tabular", {}).items():
        facts[f"column {column}"] = ", ".join(f"{key} {_short(value)}" for key, value in summary.items())
    return facts


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {count}" for name, count in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)

"""Tables of the report as text: cohort, worst cases, subgroups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cpic_monai.report import words
from cpic_monai.report.provenance import without_paths
from cpic_monai.report.style import number
from cpic_monai.report.summary import describe_cohort
from cpic_monai.report.trajectories import subject_errors

__all__ = ["WORST", "cohort_table", "rows_word", "subgroup_rows", "worst_cases"]

WORST = 10
_COHORT_LABELS = {"subjects": "Subjects", "target_mean": "Mean", "target_sd": "SD"}


def cohort_table(cohort: Mapping[str, Any], frame: pd.DataFrame) -> dict[str, Any]:
    """
    The cohort by split, and single facts that stand above it.

    Returns
    -------
    dict
        ``headings``, ``rows`` (``split`` and ``cells``), ``facts`` (name to text), all text but for absolute paths.
    """
    facts = {str(key): value for key, value in cohort.items() if not isinstance(value, Mapping)}
    splits = describe_cohort(frame)
    for split, entry in cohort.items():
        if isinstance(entry, Mapping):
            splits[str(split)] = {**splits.get(str(split), {}), **entry}
    keys = list(dict.fromkeys(key for entry in splits.values() for key in entry))
    rows = [{"split": split, "cells": [_cell(entry.get(key)) for key in keys]} for split, entry in splits.items()]
    labels = _COHORT_LABELS | {"visits": rows_word(frame)}
    facts = {key.replace("_", " "): _cell(value) for key, value in without_paths(facts).items()}
    return {"headings": [labels.get(key, key.replace("_", " ")) for key in keys], "rows": rows, "facts": facts}


def rows_word(frame: pd.DataFrame) -> str:
    """What a row is called: a visit, where the cohort has such."""
    return "Visits" if frame["visit"].notna().any() else "Rows"


def _cell(value: Any) -> str:
    if value is None or isinstance(value, float):
        return number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return number(value, 1)
    return str(value)


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def worst_cases(frame: pd.DataFrame) -> list[dict[str, str]]:
    """The subjects furthest off, the worst first, as text; none where no truth is known."""
    return [
        {
            "subject": str(row["subject"]),
            "visits": number(row["visits"], 1),
            "mae": number(row["mae"]),
            "bias": _signed(row["bias"]),
            "width": number(row["width"]),
            "coverage": words.written("coverage", row["coverage"]),
        }
        for row in subject_errors(frame).head(WORST).to_dict("records")
    ]


def subgroup_rows(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Scores of `subgroups.subgroup_scores` as text; ``mae_interval``, ``coverage_interval`` may be empty."""
    return [
        {
            "stratum": str(group["stratum"]).replace("_", " "),
            "value": str(group["value"]),
            "subjects": number(group["subjects"], 1),
            "n": number(group["n"], 1),
            "bias": _signed(group["bias"]),
        }
        | {key: words.written(key, group[key]) for key in ("mae", "coverage", "mlll")}
        | {
            f"{key}_interval": words.ends(key, *group["intervals"].get(key, (None, None)))
            for key in ("mae", "coverage")
        }
        for group in groups
    ]

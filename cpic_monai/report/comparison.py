"""Two checkpoints on the same patients: the paired difference of every metric with its interval over patients."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cpic_monai.metrics import quantile_columns, summarise
from cpic_monai.report.bootstrap import metric_differences, metric_intervals
from cpic_monai.report.predictions import patients_of, read_predictions
from cpic_monai.report.trajectories import subject_errors
from cpic_monai.report.words import COLUMNS, headline_split

__all__ = ["DifferentPatientsError", "Evaluated", "compare", "same_rows", "settings_that_differ"]

NAMED = 10


class DifferentPatientsError(ValueError):
    """The two evaluations are not of the same patients, visits and true values."""


@dataclass(frozen=True)
class Evaluated:
    """
    One side of a comparison: a checkpoint's predictions and what `report.json` says about them.

    Attributes
    ----------
    name : str
        What it is called on the page.
    predictions : DataFrame
        See `predictions`.
    facts : mapping
        Content of `report.json`; ``target``, ``scoring`` and ``provenance`` are used.
    """

    name: str
    predictions: pd.DataFrame = field(repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, folder: str | Path, name: str | None = None) -> Evaluated:
        """
        Read `predictions.csv` and `report.json` of an evaluation's folder.

        Raises
        ------
        FileNotFoundError
            If one of them is missing.
        ValueError
            If the predictions are not as they should be.
        """
        folder = Path(folder)
        for file in ("predictions.csv", "report.json"):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"{folder / file} is missing; give a folder that an evaluation has written")
        facts = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return cls(name or folder.resolve().name, read_predictions(folder / "predictions.csv"), facts)


def _listed(names: set[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(sorted(names)[:NAMED]) + more


def same_rows(first: Evaluated, second: Evaluated, split: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """
    The rows of a split with a known truth, in one order.

    Parameters
    ----------
    first, second : Evaluated
    split : str

    Returns
    -------
    tuple of DataFrame
        Sorted by subject and visit, with fresh indices and the same patients: those of the side that has fewer, for the
        other one's file may have been written when each subject was a patient.

    Raises
    ------
    DifferentPatientsError
        If a patient is in one of them alone (all are named, up to ten a side), or a patient's visits or true values
        differ (the first such patient is named).
    ValueError
        If one of them has no row with a truth in that split.
    """
    parts = []
    for side in (first, second):
        frame = side.predictions
        part = frame[(frame["split"] == split) & frame["truth"].notna()]
        if part.empty:
            known = sorted(frame.loc[frame["truth"].notna(), "split"].unique())
            raise ValueError(f"{side.name}: no row with a true value in the split {split!r}; it has {known}")
        parts.append(part.sort_values(["subject", "visit", "truth"], kind="stable", ignore_index=True))
    mine, theirs = (set(part["subject"]) for part in parts)
    if mine != theirs:
        alone = [
            f"{_listed(names)} ({len(names)}) in {side.name} alone"
            for side, names in ((first, mine - theirs), (second, theirs - mine))
            if names
        ]
        raise DifferentPatientsError(
            f"the split {split!r} has different patients: {'; '.join(alone)}. Evaluate both checkpoints on the same "
            "fold and seed"
        )
    # Truths pass through float32 on their way, less an offset: what is lost is in proportion to the largest.
    slack = 1e-5 * float(np.abs(parts[0]["truth"]).max())
    for subject in sorted(mine):
        one, other = (part[part["subject"] == subject] for part in parts)
        if len(one) != len(other) or not all(
            np.allclose(one[name], other[name], rtol=1e-5, atol=atol, equal_nan=True)
            for name, atol in (("visit", 0.0), ("truth", slack))
        ):
            raise DifferentPatientsError(
                f"subject {subject}: visits or true values differ ({len(one)} rows in {first.name}, {len(other)} in "
                f"{second.name}); evaluate both checkpoints on the same table"
            )
    fewer = min(parts, key=lambda part: part["patient"].nunique())
    one, other = (part.assign(patient=part["subject"].map(patients_of(fewer))) for part in parts)
    return one, other


def compare(first: Evaluated, second: Evaluated, *, split: str | None = None, seed: int = 0) -> dict[str, Any]:
    """
    Score two checkpoints on the same rows.

    Parameters
    ----------
    first, second : Evaluated
        Differences are `second` minus `first`.
    split : str, optional
        By default the one that a report of `first` is about.
    seed : int
        Of the patients drawn.

    Returns
    -------
    dict
        ``split``, ``names``, ``subjects``, ``n_patients``, ``n`` (rows), ``target``, ``metrics`` (one object a metric:
        ``name``, ``label``, ``first``, ``second``, their ``first_interval`` and ``second_interval``, ``difference``,
        ``low``, ``high``, ``verdict``: "second" or "first" where the interval of the difference leaves zero out on the
        better side, else "unclear"), ``patients`` (one object a subject: ``subject``, ``first`` and ``second`` mean
        absolute error, ``difference``; most improved first), ``improved`` (share of subjects with a smaller error),
        ``settings`` (see `settings_that_differ`). Coverage is neither better greater nor smaller, its verdict is empty.

    Raises
    ------
    DifferentPatientsError, ValueError
        See `same_rows`; also if target, quantile levels or the clips of the mLLL differ.
    """
    split = split or headline_split(list(dict.fromkeys(first.predictions["split"])))
    one, other = same_rows(first, second, split)
    for what in ("target", "scoring"):
        if first.facts.get(what) != second.facts.get(what):
            raise ValueError(
                f"{what} differs: {first.facts.get(what)} in {first.name}, {second.facts.get(what)} in {second.name}"
            )
    levels = [list(quantile_columns(part)) for part in (one, other)]
    if levels[0] != levels[1]:
        raise ValueError(f"quantile levels differ: {levels[0]} in {first.name}, {levels[1]} in {second.name}")
    clips = dict(first.facts.get("scoring") or {})
    scores = [summarise(part, **clips) for part in (one, other)]
    alone = [metric_intervals(part, seed=seed, **clips) for part in (one, other)]
    paired = metric_differences(other, one, seed=seed, **clips)
    metrics = []
    for name, label, greater, has_unit in COLUMNS:
        low, high = paired.get(name, (math.nan, math.nan))
        verdict = "" if greater is None else "unclear"
        if greater is not None and (low > 0 or high < 0):
            verdict = "second" if (low > 0) == greater else "first"
        metrics.append(
            {
                "name": name,
                "label": label,
                "greater": greater,
                "has_unit": has_unit,
                "first": scores[0][name],
                "second": scores[1][name],
                "first_interval": list(alone[0].get(name, ())),
                "second_interval": list(alone[1].get(name, ())),
                "difference": scores[1][name] - scores[0][name],
                "low": low,
                "high": high,
                "verdict": verdict,
            }
        )
    errors = subject_errors(one).merge(subject_errors(other), on="subject", suffixes=("_first", "_second"))
    patients = pd.DataFrame({"subject": errors["subject"], "visits": errors["visits_first"]})
    patients["first"], patients["second"] = errors["mae_first"], errors["mae_second"]
    patients["difference"] = patients["second"] - patients["first"]
    patients = patients.sort_values("difference", kind="stable", ignore_index=True)
    return {
        "split": split,
        "names": [first.name, second.name],
        "subjects": len(patients),
        "n_patients": int(one["patient"].nunique()),
        "n": len(one),
        "target": dict(first.facts.get("target") or {}),
        "metrics": metrics,
        "patients": patients.to_dict("records"),
        "improved": float((patients["difference"] < 0).mean()),
        "settings": settings_that_differ(first.facts.get("provenance") or {}, second.facts.get("provenance") or {}),
    }


def settings_that_differ(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[dict[str, Any]]:
    """
    Entries of two provenances that are not the same, the time of the runs left out.

    Returns
    -------
    list of dict
        ``name`` (such as ``config rank``), ``first``, ``second``; None where one lacks it.
    """
    rows: list[dict[str, Any]] = []
    for key in dict.fromkeys([*first, *second]):
        one, other = first.get(key), second.get(key)
        if one == other or (not prefix and key == "date"):
            continue
        name = f"{prefix} {key}".strip()
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            rows += settings_that_differ(one, other, name)
        else:
            rows.append({"name": name, "first": one, "second": other})
    return rows

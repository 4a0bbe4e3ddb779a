"""
Numbers of the report: metrics of every split, the constant baseline, and the cohort.

`metrics.json` holds one object a split: ``mlll, rmse, mae, r2, pinball, coverage, n`` (rows scored) and ``subjects``;
where truths are missing, ``n_without_truth``; with two patients or more ``intervals``, a metric's 95 % interval over
patients (see `bootstrap`); where given, ``baselines``, a mapping of a baseline's name to the same keys and to
``gains``: a metric's ``difference`` (the model's less the baseline's) with the ends ``low`` and ``high`` of its paired
interval. A metric without a value (R2 of a single row) is null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cpic_monai.atomic import write_text_atomically
from cpic_monai.metrics import quantile_columns, summarise
from cpic_monai.report.bootstrap import metric_differences, metric_intervals
from cpic_monai.report.predictions import check_predictions, patients_of

__all__ = ["constant_baseline", "describe_cohort", "plain", "read_metrics", "summarise_splits", "write_metrics"]


def constant_baseline(frame: pd.DataFrame, fitted: Sequence[str] = ("train",)) -> pd.DataFrame:
    """
    The best that can be done without looking: the same quantiles for every row.

    The quantiles are those of ``truth - offset`` over the rows of the splits `fitted`; a row's prediction is its own
    offset plus these. With FVC relative to the first visit that is "everybody changes like the average patient".

    Parameters
    ----------
    frame : DataFrame
        Predictions that include the rows of these splits.
    fitted : sequence of str
        The splits that the network learned from.

    Returns
    -------
    DataFrame
        The rows of `frame` with other quantiles.

    Raises
    ------
    ValueError
        If these splits have no row with a truth.
    """
    result = check_predictions(frame)
    # A row without an offset is relative to nothing, that is, to 0.
    offset = result["offset"].fillna(0.0)
    change = (result["truth"] - offset)[result["split"].isin(fitted) & result["truth"].notna()]
    if change.empty:
        raise ValueError(
            f"the constant baseline needs rows with a truth in the splits {list(fitted)}; found the splits "
            f"{sorted(result['split'].unique())}"
        )
    for level, name in quantile_columns(result).items():
        result[name] = offset + float(np.quantile(change, level))
    return result


def summarise_splits(
    frame: pd.DataFrame,
    *,
    baselines: Mapping[str, pd.DataFrame] | None = None,
    sigma_min: float = 70.0,
    error_max: float = 1000.0,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """
    Metrics of every split, in the order in which splits first occur.

    Parameters
    ----------
    frame : DataFrame
        Predictions; rows without a truth are counted in ``n_without_truth`` and not scored.
    baselines : mapping of name to DataFrame, optional
        Predictions of the same rows by something simpler, such as `constant_baseline`. Patients are those of `frame`.
    sigma_min, error_max : float
        Clips of the mLLL in the target's unit.
    seed : int
        Of the patients drawn for the intervals.

    Returns
    -------
    dict
        As in `metrics.json`, with NaN where a metric has no value.

    Raises
    ------
    ValueError
        If a baseline covers other rows than `frame`: its numbers could not stand beside the model's.
    """
    frame = check_predictions(frame)
    others = {name: check_predictions(other) for name, other in (baselines or {}).items()}
    keys = ["split", "subject", "visit"]
    for name, other in others.items():
        mine, theirs = (part.sort_values([*keys, "truth"]).reset_index(drop=True) for part in (frame, other))
        # Truths may have passed through float32 on one of the ways.
        same = mine[keys].equals(theirs[keys]) and np.allclose(mine["truth"], theirs["truth"], 1e-5, 0, equal_nan=True)
        if not same:
            raise ValueError(
                f"the baseline {name!r} has {len(other)} rows that are not the {len(frame)} rows of the predictions "
                "(same split, subject, visit and truth); evaluate both on the same items"
            )
        other["patient"] = other["subject"].map(patients_of(frame))
    clips = {"sigma_min": sigma_min, "error_max": error_max}

    def scores(part: pd.DataFrame) -> dict[str, Any]:
        entry: dict[str, Any] = dict(summarise(part, missing_truth="omit", **clips))
        intervals = metric_intervals(part, seed=seed, **clips)
        return entry | ({"intervals": {name: list(ends) for name, ends in intervals.items()}} if intervals else {})

    result: dict[str, dict[str, Any]] = {}
    for split in dict.fromkeys(frame["split"]):
        part = frame[frame["split"] == split]
        entry = scores(part)
        entry["subjects"] = int(part["subject"].nunique())
        unknown = len(part) - int(entry["n"])
        if unknown:
            entry["n_without_truth"] = unknown
        for name, other in others.items():
            beside = other[other["split"] == split]
            base = scores(beside)
            gains = {
                metric: {"difference": entry[metric] - base[metric], "low": low, "high": high}
                for metric, (low, high) in metric_differences(part, beside, seed=seed, **clips).items()
            }
            entry.setdefault("baselines", {})[name] = base | ({"gains": gains} if gains else {})
        result[split] = entry
    return result


def describe_cohort(frame: pd.DataFrame) -> dict[str, dict[str, float | int]]:
    """
    Subjects, visits and the target of every split.

    Returns
    -------
    dict
        Split to ``subjects``, ``visits`` (rows), ``target_mean`` and ``target_sd`` (sample standard deviation) of the
        true values, in natural units; NaN where unknown.
    """
    frame = check_predictions(frame)
    result: dict[str, dict[str, float | int]] = {}
    for split in dict.fromkeys(frame["split"]):
        part = frame[frame["split"] == split]
        truth = part["truth"].dropna()
        result[split] = {
            "subjects": int(part["subject"].nunique()),
            "visits": len(part),
            "target_mean": float(truth.mean()) if len(truth) else math.nan,
            "target_sd": float(truth.std(ddof=1)) if len(truth) > 1 else math.nan,
        }
    return result


def plain(value: Any) -> Any:
    """The value as JSON knows it: NumPy numbers unwrapped, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_metrics(metrics: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write `metrics.json` (strict JSON: null for a metric without a value) under a temporary name, then rename it."""
    return write_text_atomically(path, json.dumps(plain(metrics), indent=2, allow_nan=False) + "\n")


def read_metrics(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read `metrics.json`; null stays None."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{Path(path).name}: expected one object a split, found {type(content).__name__}")
    return content

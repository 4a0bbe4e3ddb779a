"""The report in plain words and in table cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cpic_monai.report.bootstrap import LEVEL
from cpic_monai.report.style import number, percent

__all__ = ["Tile", "columns_of", "ends", "headline", "headline_split", "interval", "metric_rows", "tiles", "written"]

HELD_OUT = ("test", "testing", "holdout", "val", "valid", "validation", "validate")
# key, heading, whether greater is better (None: neither), whether in the target's unit
COLUMNS: tuple[tuple[str, str, bool | None, bool], ...] = (
    ("mlll", "mLLL", True, False),
    ("rmse", "RMSE", False, True),
    ("mae", "MAE", False, True),
    ("r2", "R²", True, False),
    ("pinball", "Pinball", False, True),
    ("coverage", "Coverage", None, False),
)
CLASS_COLUMNS = (
    ("auc", "AUC", True, False),
    ("accuracy", "Accuracy", True, False),
    ("log_loss", "Log loss", False, False),
)
SURVIVAL_COLUMNS = (("concordance", "Concordance", True, False), ("cox", "Cox", False, False))
#: Digits behind the point, of metrics that have no unit.
DECIMALS = {"mlll": 2, "r2": 2, "auc": 3, "log_loss": 3, "concordance": 3, "cox": 3}

Tile = dict[str, str]


def columns_of(key: str) -> tuple[tuple[str, str, bool | None, bool], ...]:
    """
    The columns of the table that a metric stands in: of quantiles, of classes or of survival.

    Raises
    ------
    ValueError
        If it is in none of them.
    """
    tables = (COLUMNS, CLASS_COLUMNS, SURVIVAL_COLUMNS)
    for columns in tables:
        if key in [name for name, *_ in columns]:
            return columns
    known = ", ".join(name for columns in tables for name, *_ in columns)
    raise ValueError(f"config key `key_metric` is {key!r}, none of {known}: there is no table of it over folds")


def value_of(entry: Mapping[str, Any], key: str) -> float:
    """A metric as float; NaN where it is missing or null."""
    value = entry.get(key)
    return math.nan if value is None else float(value)


def written(key: str, value: float) -> str:
    """A metric's value as text."""
    if key in ("coverage", "accuracy"):
        return percent(value)
    if key in DECIMALS:
        return "–" if math.isnan(value) else f"{value:.{DECIMALS[key]}f}".replace("-", "−")
    return number(value)


def ends(key: str, low: float | None, high: float | None) -> str:
    """An interval as text, "150 to 181"; empty where there is none."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"{written(key, low)} to {written(key, high)}"


def interval(entry: Mapping[str, Any], key: str) -> str:
    """The interval of a metric of an entry of `metrics.json` as text; empty where there is none."""
    low, high = (entry.get("intervals") or {}).get(key) or (None, None)
    return ends(key, low, high)


def headline_split(splits: Sequence[str]) -> str:
    """The split a report is about: the one held out for testing, else for validation, else the last one."""
    lowered = {split.lower(): split for split in splits}
    return next((lowered[name] for name in HELD_OUT if name in lowered), splits[-1])


def headline(
    frame: pd.DataFrame, split: str, entry: Mapping[str, Any], *, target_name: str, unit: str, others: bool
) -> list[str]:
    """
    Sentences that say how good the predictions are.

    Parameters
    ----------
    frame : DataFrame
        Predictions of the split.
    split : str
    entry : mapping
        The split's metrics.
    target_name, unit : str
    others : bool
        Whether there are further splits, so that this one needs its name.

    Returns
    -------
    list of str
    """
    subjects, patients, rows = frame["subject"].nunique(), frame["patient"].nunique(), len(frame)
    who = f"{number(subjects, 1)} {'subject' if subjects == 1 else 'subjects'}"
    if patients != subjects:
        who += f" of {number(patients, 1)} {'patient' if patients == 1 else 'patients'}"
    if rows != subjects:
        who += f" ({number(rows, 1)} visits)"
    if others:
        held = {"test": "held out for testing", "val": "held out for validation"}
        who += f" {held.get(split.lower(), f'of the split “{split}”')}"
    unknown = int(frame["truth"].isna().sum())
    if unknown == rows:
        return [
            f"{target_name} was predicted for {who}.",
            "Their true values are not known, so there is nothing to compare with: errors, calibration and residuals "
            "are left out.",
        ]
    mae, rmse, coverage, mlll = (value_of(entry, key) for key in ("mae", "rmse", "coverage", "mlll"))
    sentences = []
    if not math.isnan(mae):
        unit_ = f"\N{NO-BREAK SPACE}{unit}" if unit else ""
        sentences.append(
            f"On {who}, the predicted {target_name} is {number(mae)}{unit_} off on average "
            f"(root mean square {number(rmse)}{unit_})."
        )
    else:
        sentences.append(f"{target_name} was predicted for {who}.")
    if not math.isnan(coverage):
        verdict = ""
        nominal = 0.6
        # Two standard errors of a share among as many draws as there are patients, whose visits resemble each other.
        slack = 2 * math.sqrt(nominal * (1 - nominal) / max(patients, 1))
        if coverage < nominal - slack:
            verdict = ": the intervals are too narrow"
        elif coverage > nominal + slack:
            verdict = ": the intervals are wider than they need to be"
        sentences.append(
            f"The 20–80 % interval holds {percent(coverage)} of the true values, where 60 % are expected{verdict}."
        )
    comparisons = []
    for name, other in (entry.get("baselines") or {}).items():
        difference = mlll - value_of(other, "mlll")
        if not math.isnan(difference):
            gain = (other.get("gains") or {}).get("mlll") or {}
            sure = ends("mlll", gain.get("low"), gain.get("high"))
            comparisons.append(
                f"{abs(difference):.2f} {'above' if difference >= 0 else 'below'} {_readable(name)} "
                f"({written('mlll', value_of(other, 'mlll'))}{f'; difference {sure}' if sure else ''})"
            )
    if not math.isnan(mlll):
        text = f"The Laplace log-likelihood (mLLL) is {written('mlll', mlll)}"
        sentences.append(text + (", " + " and ".join(comparisons) if comparisons else "") + "; greater is better.")
    if any((other.get("gains") or {}).get("mlll") for other in (entry.get("baselines") or {}).values()):
        sentences.append(f"Ranges are {100 * LEVEL:g} % intervals over patients.")
    if unknown:
        sentences.append(f"{unknown} of {rows} rows have no true value and are not scored.")
    return sentences


def _readable(name: str) -> str:
    return {"constant": "a constant prediction", "tabular": "tabular data alone"}.get(name, f"“{name}”")


def tiles(entry: Mapping[str, Any], unit: str) -> list[Tile]:
    """
    The four headline numbers.

    Returns
    -------
    list of dict
        ``label``, ``value``, ``unit``, ``interval``, ``note``, ``tone`` (better, worse, same or empty).
    """
    result: list[Tile] = []
    baselines = entry.get("baselines") or {}
    for key, label, greater, has_unit in COLUMNS:
        value = value_of(entry, key)
        if key in ("pinball", "r2") or math.isnan(value):
            continue
        tile: Tile = {
            "label": label,
            "value": written(key, value),
            "unit": unit if has_unit else "",
            "interval": interval(entry, key),
            "note": "",
            "tone": "",
        }
        if key == "coverage":
            tile["note"] = "60 % expected"
        elif baselines:
            name, other = next(iter(baselines.items()))
            base = value_of(other, key)
            if not math.isnan(base):
                word = "same as" if value == base else "better than" if (value > base) == greater else "worse than"
                tile["note"] = f"{word} {name} ({written(key, base)})"
                tile["tone"] = word.split()[0]
        result.append(tile)
    return result


def metric_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    Rows of the metrics table: every split's model, then its baselines.

    Returns
    -------
    list of dict
        ``split`` (empty below the first row of a split), ``who``, ``cells`` (text, whether best within the split,
        interval), ``n``, ``subjects``, ``is_model``.
    """
    rows: list[dict[str, Any]] = []
    for split, entry in metrics.items():
        candidates = {"C-PIC": entry} | dict(entry.get("baselines") or {})
        best: dict[str, float] = {}
        for key, _, greater, _ in COLUMNS:
            values = [value for other in candidates.values() if not math.isnan(value := value_of(other, key))]
            if greater is not None and len(candidates) > 1 and values:
                best[key] = max(values) if greater else min(values)
        for name, other in candidates.items():
            is_model = other is entry
            cells = []
            for key, *_ in COLUMNS:
                value = value_of(other, key)
                cells.append((written(key, value), value == best.get(key), interval(other, key)))
            rows.append(
                {
                    "split": split if is_model else "",
                    "who": name,
                    "cells": cells,
                    "n": number(float(other["n"]), 1) if "n" in other else "–",
                    "subjects": number(float(entry["subjects"]), 1) if is_model and "subjects" in entry else "",
                    "is_model": is_model,
                }
            )
    return rows

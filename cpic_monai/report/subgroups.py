"""
Errors by subgroup: sex, age, smoking, or whatever strata a cohort brings.

The groups are fixed before anything is looked at: every value of a categorical stratum, and thirds of a numeric one,
cut at the terciles of all patients of the report. All of them are shown, with their number of patients and an interval
over patients; there are no tests and no p-values, for with a dozen groups one of them stands out by chance.
"""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from cpic_monai.metrics import summarise
from cpic_monai.report.bootstrap import LEVEL, metric_intervals
from cpic_monai.report.predictions import strata_columns
from cpic_monai.report.style import ACCENT, INK, MUTED, RC, Picture, canvas, number, svg

__all__ = ["MOST_VALUES", "group_labels", "subgroup_figure", "subgroup_scores"]

MOST_VALUES = 8  # a stratum with more different values is cut in thirds if numeric, else left out
FEWEST = 5  # patients of a group below which it gets no interval
UNKNOWN = "unknown"
_METRICS = ("mae", "coverage", "mlll")


def group_labels(frame: pd.DataFrame, column: str) -> pd.Series | None:
    """
    Name of every row's group in a stratum.

    Parameters
    ----------
    frame : DataFrame
        A predictions frame; terciles are those of its patients, not of its rows.
    column : str
        One of its strata.

    Returns
    -------
    Series of str, or None
        Ordered categories. None where the stratum has one value alone, or more than `MOST_VALUES` that are no numbers.
    """
    text = frame[column].astype(str).str.strip()
    text = text.mask(text.isin(["", "nan", "None"]), UNKNOWN)
    values = sorted(set(text) - {UNKNOWN})
    numbers = pd.to_numeric(text.where(text != UNKNOWN), errors="coerce")
    if len(values) > MOST_VALUES:
        if numbers.isna().sum() > (text == UNKNOWN).sum():
            return None
        first, second = np.quantile(numbers.groupby(frame["patient"]).first().dropna(), [1 / 3, 2 / 3])
        low, high = number(float(first)), number(float(second))
        values = [f"below {low}", f"{low} to {high}", f"above {high}"]
        which = np.where(numbers < first, 0, np.where(numbers <= second, 1, 2))
        text = text.where(text == UNKNOWN, pd.Series(np.array(values)[which], index=text.index))
    present = [value for value in [*values, UNKNOWN] if (text == value).any()]
    return text.astype(pd.CategoricalDtype(present, ordered=True)) if len(present) > 1 else None


def subgroup_scores(
    frame: pd.DataFrame, split: str, *, sigma_min: float = 70.0, error_max: float = 1000.0, seed: int = 0
) -> list[dict[str, Any]]:
    """
    Scores of every group of every stratum in one split.

    Parameters
    ----------
    frame : DataFrame
        Predictions of all splits, which the terciles are taken from.
    split : str
        The split that is scored.
    sigma_min, error_max : float
        Clips of the mLLL in the target's unit.
    seed : int
        Of the bootstrap.

    Returns
    -------
    list of dict
        ``stratum``, ``value``, ``subjects``, ``patients``, ``n`` (rows scored), ``mae``, ``coverage``, ``mlll``,
        ``bias`` (mean of truth - median) and ``intervals`` (of the metrics; empty below five patients). Groups without
        a truth are left out, and strata that leave a single group.
    """
    clips: dict[str, Any] = {"sigma_min": sigma_min, "error_max": error_max}
    result: list[dict[str, Any]] = []
    for column in strata_columns(frame):
        labels = group_labels(frame, column)
        if labels is None:
            continue
        rows = []
        for value in labels.cat.categories:
            part = frame[(labels == value) & (frame["split"] == split) & frame["truth"].notna()]
            if part.empty:
                continue
            scores = summarise(part, **clips)
            counts = {"subjects": int(part["subject"].nunique()), "patients": int(part["patient"].nunique())}
            found = metric_intervals(part, seed=seed, **clips) if counts["patients"] >= FEWEST else {}
            rows.append(
                {"stratum": column, "value": str(value), **counts, "n": int(scores["n"])}
                | {name: float(scores[name]) for name in _METRICS}
                | {"bias": float((part["truth"] - part["q0.5"]).mean()) if "q0.5" in part else math.nan}
                | {"intervals": {name: list(found[name]) for name in _METRICS if name in found}}
            )
        result += rows if len(rows) > 1 else []
    return result


@mpl.rc_context(RC)
def subgroup_figure(groups: list[dict[str, Any]], overall: float, unit: str) -> Picture:
    """
    Mean absolute error of every group with its interval, beside that of all patients.

    Parameters
    ----------
    groups : list of dict
        Of `subgroup_scores`, not empty.
    overall : float
        Mean absolute error of all rows.
    unit : str

    Returns
    -------
    Picture
    """
    places, labels, place = [], [], 0.0
    for k, group in enumerate(groups):
        place += 1.6 if k and group["stratum"] != groups[k - 1]["stratum"] else 1.0
        places.append(place)
        labels.append(f"{group['stratum'].replace('_', ' ')}: {group['value']} ({group['patients']})")
    figure, axes = canvas(6.4, 0.7 + 0.24 * place)
    axes.axvline(overall, color=INK, linewidth=1.0, dashes=(4, 3), label=f"all patients, {number(overall)} {unit}")
    for at, group in zip(places, groups, strict=True):
        ends = group["intervals"].get("mae")
        if ends:
            axes.hlines(at, *ends, color=ACCENT, alpha=0.4, linewidth=5)
        axes.scatter(group["mae"], at, s=30, color=ACCENT if ends else MUTED, zorder=3, linewidths=0)
    axes.set(yticks=places, yticklabels=labels, xlabel=f"Mean absolute error{f' [{unit}]' if unit else ''}")
    axes.set_xlim(left=0)
    axes.set_ylim(place + 0.7, 0.3)
    axes.yaxis.grid(False)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    figure.legend(loc="outside upper right")
    alt = "Mean absolute error by subgroup: " + "; ".join(
        f"{label} {number(group['mae'])} {unit}".rstrip() for label, group in zip(labels, groups, strict=True)
    )
    caption = (
        f"Number of patients in brackets. Bars: {100 * LEVEL:g} % intervals over patients; groups of fewer than "
        f"{FEWEST} patients, in grey, have none."
    )
    return Picture(svg(figure, "subgroups", alt), "Error by subgroup", caption, alt + ".")

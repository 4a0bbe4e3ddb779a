"""
How sure a metric is: intervals by the cluster bootstrap over patients.

Scans and visits of a patient resemble each other, hence patients are drawn with replacement, not rows, and a patient
drawn twice brings all of them twice. Every draw is a vector of whole weights, one a patient, so that a metric's 1000
values are one matrix product of weights and sums by patient. Intervals are percentile intervals: with few patients
(below about fifteen) they come out somewhat too narrow, and say nothing about another hospital, scanner or training
run.

Source: A. C. Davison, D. V. Hinkley, Bootstrap Methods and their Application (1997), sections 3.8 and 5.3.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cpic_monai.metrics import quantile_columns
from cpic_monai.metrics.named import named_metrics

__all__ = ["DRAWS", "LEVEL", "interval", "metric_differences", "metric_draws", "metric_intervals", "patient_weights"]

DRAWS = 1000
LEVEL = 0.95
Floats = npt.NDArray[np.float64]


def patient_weights(patients: int, draws: int = DRAWS, seed: int = 0) -> Floats:
    """
    How often every patient is drawn.

    Parameters
    ----------
    patients : int
        Number of patients, P > 0.
    draws : int
    seed : int

    Returns
    -------
    array, float64, shape (draws, P)
        Whole numbers; every row adds up to P.
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(patients, np.full(patients, 1 / patients), size=draws).astype(np.float64)


def interval(values: npt.ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """The central share `level` of a metric's draws; NaN and NaN if none of them is finite."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return math.nan, math.nan
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def metric_draws(
    frame: pd.DataFrame,
    *,
    sigma_min: float = 70.0,
    error_max: float = 1000.0,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Floats]:
    """
    Every metric on every draw of patients.

    Parameters
    ----------
    frame : DataFrame
        A predictions frame (see `predictions`); rows without a truth are left out.
    sigma_min, error_max : float
        Clips of the mLLL in the target's unit.
    draws, seed : int
        Two frames of the same patients see the same draws.

    Returns
    -------
    dict of str to array, float64, shape (draws,)
        By the metric's name in `metrics.json`; empty with fewer than two patients, whom there is no way to redraw. R2
        is NaN on draws whose truths are all equal.
    """
    columns = quantile_columns(frame)
    known = frame.dropna(subset=["truth"])
    # In the order of their names, so that a draw means the same patients in another frame.
    names, patient = np.unique(known["patient"].to_numpy(dtype=str), return_inverse=True)
    if len(names) < 2:
        return {}
    pred = torch.from_numpy(known[list(columns.values())].to_numpy(dtype=np.float64, copy=True))
    truth = torch.from_numpy(known[["truth"]].to_numpy(dtype=np.float64, copy=True))
    weights = patient_weights(len(names), draws, seed)

    def total(values: Floats) -> Floats:
        """Weighted sum of a row's values over each draw."""
        return weights @ np.bincount(patient, weights=values, minlength=len(names))

    rows = total(np.ones(len(known)))
    result: dict[str, Floats] = {}
    for name, metric in named_metrics(tuple(columns), sigma_min, error_max).items():
        values = torch.as_tensor(metric(pred, truth)).numpy()
        mean = total(values[:, 0]) / rows
        if name == "rmse":
            mean = np.sqrt(mean)
        elif name == "r2":
            centred = values[:, 1] - values[:, 1].mean()
            spread = total(centred**2) / rows - (total(centred) / rows) ** 2
            flat = spread <= 1e-12 * np.mean(centred**2)
            mean = 1.0 - np.divide(mean, spread, out=np.full_like(mean, math.nan), where=~flat)
        result[name] = mean
    return result


def metric_intervals(frame: pd.DataFrame, *, level: float = LEVEL, **given: Any) -> dict[str, tuple[float, float]]:
    """
    Interval of every metric over patients.

    Parameters
    ----------
    frame : DataFrame
    level : float
        Share of the draws inside.
    **given
        See `metric_draws`.

    Returns
    -------
    dict of str to (low, high)
        Empty with fewer than two patients.
    """
    return {name: interval(values, level) for name, values in metric_draws(frame, **given).items()}


def metric_differences(
    first: pd.DataFrame, second: pd.DataFrame, *, level: float = LEVEL, **given: Any
) -> dict[str, tuple[float, float]]:
    """
    Interval of every metric's difference, `first` minus `second`, on the same draws of the same patients.

    What is easy or hard about a patient is so for both and cancels, hence the interval is narrower than those of the
    two metrics suggest.

    Raises
    ------
    ValueError
        If the patients with a truth are not the same.
    """
    sets = [set(frame.loc[frame["truth"].notna(), "patient"].astype(str)) for frame in (first, second)]
    if sets[0] != sets[1]:
        raise ValueError(f"a difference needs the same patients; these are in one alone: {sorted(sets[0] ^ sets[1])}")
    one, other = metric_draws(first, **given), metric_draws(second, **given)
    return {name: interval(one[name] - other[name], level) for name in one if name in other}

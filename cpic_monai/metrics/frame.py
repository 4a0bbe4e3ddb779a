"""Metrics of a whole table of predictions, by the classes that score an epoch."""

from __future__ import annotations

import math
import re
from typing import Literal

import numpy as np
import pandas as pd
import torch

from cpic_monai.metrics.named import NAMES, named_metrics

_COLUMN = re.compile(r"^q(0?\.\d+)$")


def quantile_columns(frame: pd.DataFrame) -> dict[float, str]:
    """
    Columns of a predictions frame that hold quantiles, such as ``q0.2``, by level in rising order.

    Raises
    ------
    ValueError
        If there are none.
    """
    found = {float(match[1]): str(name) for name in frame.columns if (match := _COLUMN.match(str(name)))}
    if not found:
        raise ValueError(f"no quantile columns such as 'q0.5' among {[str(name) for name in frame.columns]}")
    return dict(sorted(found.items()))


def summarise(
    frame: pd.DataFrame,
    *,
    sigma_min: float = 70.0,
    error_max: float = 1000.0,
    missing_truth: Literal["error", "omit"] = "error",
) -> dict[str, float | int]:
    """
    Metrics of a predictions frame, by the same classes that score an epoch; of this frame alone, whatever other
    processes do.

    Parameters
    ----------
    frame : DataFrame
        One row a visit, columns ``q<level>`` and ``truth``, natural units.
    sigma_min, error_max : float
        Clips of the mLLL, in the target's unit.
    missing_truth : {"error", "omit"}
        What to do with rows whose truth is NaN: refuse them, or score the others (`n` says how many those are).

    Returns
    -------
    dict
        ``mlll, rmse, mae, r2, pinball, coverage`` as float and ``n`` (rows scored) as int. NaN stands where a metric
        has no value: every one if no row has a truth, those that need 0.2, 0.5 or 0.8 if it is not predicted.

    Raises
    ------
    ValueError
        If truths are missing and `missing_truth` is "error", or a prediction is not finite.
    """
    if missing_truth not in ("error", "omit"):
        raise ValueError(f"missing_truth must be 'error' or 'omit', found {missing_truth!r}")
    columns = quantile_columns(frame)
    known = frame["truth"].notna().to_numpy()
    if missing_truth == "error" and not known.all():
        raise ValueError(
            f"{int((~known).sum())} of {len(frame)} rows have no truth; give missing_truth='omit' to score the others"
        )
    pred = torch.from_numpy(frame.loc[known, list(columns.values())].to_numpy(dtype=np.float64, copy=True))
    truth = torch.from_numpy(frame.loc[known, ["truth"]].to_numpy(dtype=np.float64, copy=True))
    result: dict[str, float | int] = dict.fromkeys(NAMES, math.nan)
    if len(pred):
        for key, metric in named_metrics(tuple(columns), sigma_min, error_max).items():
            result[key] = float(metric.reduce(torch.as_tensor(metric(pred, truth))))
    result["n"] = len(pred)
    return result

"""All metrics by name: the one list that engines, tables and reports share."""

from __future__ import annotations

from collections.abc import Sequence

from cpic_monai.metrics.quantile import (
    LEVELS,
    R2,
    IntervalCoverage,
    MeanAbsoluteError,
    ModifiedLaplaceLogLikelihood,
    PinballMetric,
    QuantileMetric,
    RootMeanSquaredError,
    missing_level,
)

NAMES = ("mlll", "rmse", "mae", "r2", "pinball", "coverage")


def named_metrics(
    levels: Sequence[float], sigma_min: float = 70.0, error_max: float = 1000.0
) -> dict[str, QuantileMetric]:
    """New metrics by name, of those in ``NAMES`` that predictions of these quantile levels allow.

    Parameters
    ----------
    levels
        Quantile levels of the predictions' columns.
    sigma_min, error_max
        Clips of mLLL, in the target's unit.
    """
    levels = tuple(levels)
    metrics: dict[str, QuantileMetric] = {}
    if missing_level(levels, *LEVELS) is None:
        metrics["mlll"] = ModifiedLaplaceLogLikelihood(levels, sigma_min=sigma_min, error_max=error_max)
    if missing_level(levels, 0.5) is None:
        metrics |= {"rmse": RootMeanSquaredError(levels), "mae": MeanAbsoluteError(levels), "r2": R2(levels)}
    metrics["pinball"] = PinballMetric(levels)
    if missing_level(levels, 0.2, 0.8) is None:
        metrics["coverage"] = IntervalCoverage(levels)
    return metrics

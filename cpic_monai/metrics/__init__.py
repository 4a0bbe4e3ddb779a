"""
Metrics of quantile predictions, as MONAI cumulative metrics.

Every metric takes predicted quantiles (R, Q) and true values (R, 1), both in the target's natural unit (mL, years,
days), keeps one row a visit, and is reduced over *all* rows at the end of an epoch, so that batches of different sizes
weigh by their rows. They work in float64 and refuse values that are not finite, with their count.

Use in an engine that does not decollate::

    IgniteMetricHandler(metric_fn=ModifiedLaplaceLogLikelihood(), output_transform=from_engine(["pred", "label"]))

Metrics of class probabilities (`auc`, `accuracy`, `log_loss`) and of log hazards (`concordance`, `cox`) are beside
them.

`mlll`, `r2` are better when greater; `rmse`, `mae`, `pinball` when smaller; `coverage` when near its nominal value.
"""

from cpic_monai.metrics.classification import Accuracy, AreaUnderCurve, LogLoss, classification_metrics
from cpic_monai.metrics.engine import EngineMetrics
from cpic_monai.metrics.frame import quantile_columns, summarise
from cpic_monai.metrics.quantile import (
    R2,
    IntervalCoverage,
    MeanAbsoluteError,
    ModifiedLaplaceLogLikelihood,
    PinballMetric,
    QuantileMetric,
    RootMeanSquaredError,
    missing_level,
)
from cpic_monai.metrics.rows import RowMetric, ScoreOfRows
from cpic_monai.metrics.survival import ConcordanceIndex, CoxLikelihood, survival_metrics

__all__ = [
    "R2",
    "Accuracy",
    "AreaUnderCurve",
    "ConcordanceIndex",
    "CoxLikelihood",
    "EngineMetrics",
    "IntervalCoverage",
    "LogLoss",
    "MeanAbsoluteError",
    "ModifiedLaplaceLogLikelihood",
    "PinballMetric",
    "QuantileMetric",
    "RootMeanSquaredError",
    "RowMetric",
    "ScoreOfRows",
    "classification_metrics",
    "missing_level",
    "quantile_columns",
    "summarise",
    "survival_metrics",
]

"""Metrics of predicted quantiles: the classes. See the package for what they share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from cpic_monai.losses import check_quantiles, pinball
from cpic_monai.metrics.rows import RowMetric

LEVELS = (0.2, 0.5, 0.8)


def missing_level(quantiles: Sequence[float], *levels: float) -> float | None:
    """The first of `levels` that is not among `quantiles`, or None."""
    for level in levels:
        if not any(math.isclose(level, q, abs_tol=1e-9) for q in quantiles):
            return level
    return None


class QuantileMetric(RowMetric):
    """
    Base of the metrics here, which reduce the rows by their mean.

    Parameters
    ----------
    quantiles : sequence of float
        Levels that the columns of the predictions stand for.
    """

    def __init__(self, quantiles: Sequence[float] = LEVELS) -> None:
        self.quantiles = check_quantiles(quantiles)
        super().__init__(len(self.quantiles))

    def column(self, level: float) -> int:
        """
        Column of the predictions that holds the quantile of this level.

        Raises
        ------
        ValueError
            If the level is not predicted.
        """
        if missing_level(self.quantiles, level) is not None:
            raise ValueError(
                f"{type(self).__name__} needs the quantile {level:g}, but the predicted levels are "
                f"{list(self.quantiles)}; predict that level or name another one in the metric's arguments"
            )
        return int(np.argmin(np.abs(np.asarray(self.quantiles) - level)))

    def reduce(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.mean()


class MeanAbsoluteError(QuantileMetric):
    """Mean absolute error of the predicted median, in the target's unit."""

    def __init__(self, quantiles: Sequence[float] = LEVELS, median: float = 0.5) -> None:
        super().__init__(quantiles)
        self._median = self.column(median)

    def _error(self, pred: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return truth - pred[:, self._median : self._median + 1]

    def _rows(self, pred: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return self._error(pred, truth).abs()


class RootMeanSquaredError(MeanAbsoluteError):
    """
    Root of the mean squared error of the predicted median over all rows, in the target's unit.

    MONAI's ``RMSEMetric`` takes the root of each sample before averaging, which for a single value is the mean absolute
    error; here the root comes last. The buffer holds squared errors.
    """

    def _rows(self, pred: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return self._error(pred, truth).square()

    def reduce(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.mean().sqrt()


class R2(MeanAbsoluteError):
    """
    Coefficient of determination of the predicted median: 1 - SSE / SST.

    SST is taken about the mean of all true values in the buffer. Where those do not vary (a single row included) R2 has
    no value and NaN is returned. The buffer holds (R, 2): squared error and true value.
    """

    def _rows(self, pred: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._error(pred, truth).square(), truth], dim=1)

    def reduce(self, rows: torch.Tensor) -> torch.Tensor:
        squared, truth = rows.unbind(dim=1)
        if bool((truth == truth[0]).all()):
            return torch.full((), math.nan, dtype=truth.dtype, device=truth.device)
        return 1.0 - squared.sum() / (truth - truth.mean()).square().sum()


class PinballMetric(QuantileMetric):
    """Pinball value averaged over rows and levels, in the target's unit."""

    def _rows(self, pred: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        levels = torch.tensor(self.quantiles, dtype=pred.dtype, device=pred.device)
        return pinball(pred, truth, levels).mean(dim=1, keepdim=True)


class IntervalCoverage(QuantileMetric):
    """
    Share of true values within the interval [q_lower, q_upper], ends included; nominal is upper - lower.

    Parameters
    ----------
    quantiles : sequence of float
    lower, upper : float
        Levels of the interval's ends.
    """

    def __init__(self, quantiles: Sequence[float] = LEVELS, lower: float = 0.2, upper: float = 0.8) -> None:
        super().__init__(quantiles)
        self._lower, self._upper = self.column(lower), self.column(upper)
        if self._lower >= self._upper:
            raise ValueError(f"the interval's lower level {lower:g} must be below its upper level {upper:g}")

    def _rows(self, pred: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        inside = (truth[:, 0] >= pred[:, self._lower]) & (truth[:, 0] <= pred[:, self._upper])
        return inside.to(pred.dtype).unsqueeze(1)


class ModifiedLaplaceLogLikelihood(IntervalCoverage):
    """
    Modified Laplace log-likelihood (mLLL), the score of the OSIC challenge; greater is better.

    ``sigma = max(q_upper - q_lower, sigma_min)``, ``delta = min(|y - median|, error_max)``, and a row's value is
    ``-sqrt(2) * delta / sigma - ln(sqrt(2) * sigma)``.

    Parameters
    ----------
    quantiles : sequence of float
    sigma_min, error_max : float
        The clips in the target's unit: 70 mL and 1000 mL for OSIC's FVC. For another target choose its own measurement
        error and the error beyond which a miss is just a miss.
    lower, median, upper : float
        Levels used.

    References
    ----------
    Kaggle, "OSIC Pulmonary Fibrosis Progression", Evaluation (2020).
    """

    def __init__(
        self,
        quantiles: Sequence[float] = LEVELS,
        sigma_min: float = 70.0,
        error_max: float = 1000.0,
        lower: float = 0.2,
        median: float = 0.5,
        upper: float = 0.8,
    ) -> None:
        super().__init__(quantiles, lower, upper)
        if not (sigma_min > 0 and error_max > 0):
            raise ValueError(f"sigma_min and error_max must be positive, found {sigma_min} and {error_max}")
        self.sigma_min, self.error_max = float(sigma_min), float(error_max)
        self._median = self.column(median)

    def _rows(self, pred: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        sigma = (pred[:, self._upper] - pred[:, self._lower]).clamp(min=self.sigma_min)
        delta = (truth[:, 0] - pred[:, self._median]).abs().clamp(max=self.error_max)
        return (-math.sqrt(2.0) * delta / sigma - torch.log(math.sqrt(2.0) * sigma)).unsqueeze(1)

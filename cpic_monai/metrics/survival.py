"""Metrics of predicted log hazards of right-censored outcomes."""

from __future__ import annotations

import math

import torch

from cpic_monai.losses import CoxLoss
from cpic_monai.metrics.rows import ScoreOfRows

__all__ = ["ConcordanceIndex", "CoxLikelihood", "survival_metrics"]


class ConcordanceIndex(ScoreOfRows):
    """
    Harrell's concordance index: the share of comparable pairs whose higher hazard is that of the earlier event.

    0.5 is chance; NaN where no pair is comparable. Truths are signed times (see `cpic_monai.losses.CoxLoss`). Needs the
    package lifelines (extra ``survival``).

    References
    ----------
    Harrell, Lee and Mark, Statistics in Medicine 15 (1996).
    """

    def __init__(self) -> None:
        super().__init__(1)
        try:  # here, not after the first epoch
            from lifelines.utils import concordance_index
        except ImportError as error:
            raise ImportError("the concordance index needs lifelines: pip install 'cpic-monai[survival]'") from error
        self._index = concordance_index

    def of(self, pred: torch.Tensor, truth: torch.Tensor) -> float:
        time, event = truth.abs(), truth > 0
        try:
            return float(self._index(time.numpy(), -pred[:, 0].numpy(), event.numpy()))
        except ZeroDivisionError:  # lifelines' answer where no pair is comparable
            return math.nan


class CoxLikelihood(ScoreOfRows):
    """Negative log partial likelihood per event (Efron's ties): smaller is better, and it depends on the cohort.

    NaN without an event, where the loss is 0: there is nothing to be likely.
    """

    def __init__(self) -> None:
        super().__init__(1)

    def of(self, pred: torch.Tensor, truth: torch.Tensor) -> float:
        return float(CoxLoss()(pred, truth)) if bool((truth > 0).any()) else math.nan


def survival_metrics() -> dict[str, ScoreOfRows]:
    """New metrics by name: ``concordance`` (greater is better), ``cox`` (smaller is better)."""
    return {"concordance": ConcordanceIndex(), "cox": CoxLikelihood()}

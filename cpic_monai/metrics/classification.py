"""Metrics of predicted class probabilities, by scikit-learn."""

from __future__ import annotations

import math

import torch
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from cpic_monai.metrics.rows import ScoreOfRows

__all__ = ["Accuracy", "AreaUnderCurve", "LogLoss", "classification_metrics"]


class AreaUnderCurve(ScoreOfRows):
    """Area under the ROC curve; of more than two classes the mean over classes, each against the rest.

    NaN where a class has no row, or all rows.
    """

    def of(self, pred: torch.Tensor, truth: torch.Tensor) -> float:
        if len(truth.unique()) < self.columns:
            return math.nan
        if self.columns == 2:
            return float(roc_auc_score(truth.long(), pred[:, 1]))
        return float(roc_auc_score(truth.long(), pred, multi_class="ovr", average="macro"))


class Accuracy(ScoreOfRows):
    """Share of rows whose most probable class is the true one."""

    def of(self, pred: torch.Tensor, truth: torch.Tensor) -> float:
        return float(accuracy_score(truth.long(), pred.argmax(1)))


class LogLoss(ScoreOfRows):
    """Mean negative log probability of the true class."""

    def of(self, pred: torch.Tensor, truth: torch.Tensor) -> float:
        pred = pred / pred.sum(1, keepdim=True)  # what float32 leaves to one, scikit-learn warns of
        return float(log_loss(truth.long(), pred, labels=list(range(self.columns))))


def classification_metrics(classes: int) -> dict[str, ScoreOfRows]:
    """New metrics by name: ``auc`` and ``accuracy`` (greater is better), ``log_loss`` (smaller is better)."""
    return {"auc": AreaUnderCurve(classes), "accuracy": Accuracy(classes), "log_loss": LogLoss(classes)}

"""Base of the metrics that need all rows at once: areas under curves, concordance."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric

from cpic_monai.losses import as_rows

__all__ = ["RowMetric"]


class RowMetric(CumulativeIterationMetric):
    """
    Keeps predictions and truths of all rows, and computes one number of them at the end.

    Parameters
    ----------
    columns : int
        Columns of the predictions.
    """

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns

    @abstractmethod
    def of(self, pred: torch.Tensor, truth: torch.Tensor) -> float:
        """The metric of float64 predictions (R, K) and truths (R,); NaN where it has no value."""

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """
        Rows to keep.

        Parameters
        ----------
        y_pred : Tensor, shape (R, K)
        y : Tensor, shape (R, 1) or (R,)

        Returns
        -------
        Tensor, float64, shape (R, K + 1)

        Raises
        ------
        ValueError
            If `y` is missing, shapes do not belong together, or a value is not finite.
        """
        name = type(self).__name__
        if y is None:
            raise ValueError(f"{name} needs the true values y; got none (label the batch, or leave the metric out)")
        pred, truth = as_rows(y_pred, y, self.columns)
        rows = torch.cat([pred.detach().double(), truth.to(pred.device).double()], dim=1)
        rows = torch.as_tensor(rows.as_tensor() if hasattr(rows, "as_tensor") else rows)
        bad = int((~torch.isfinite(rows)).any(1).sum())
        if bad:
            raise ValueError(
                f"{name}: {bad} of {len(rows)} rows have a prediction or truth that is not finite; leave rows without "
                "a truth out, and look for a diverged network otherwise"
            )
        return rows

    def aggregate(self) -> torch.Tensor:
        """
        The metric over all rows of all processes since the last reset; every process must call it.

        Raises
        ------
        ValueError
            If there are no rows.
        """
        rows = self.get_buffer()
        if not isinstance(rows, torch.Tensor):
            raise ValueError(f"{type(self).__name__} has no rows to aggregate; was the data loader empty?")
        return torch.tensor(self.of(rows[:, :-1].cpu(), rows[:, -1].cpu()), dtype=torch.float64)

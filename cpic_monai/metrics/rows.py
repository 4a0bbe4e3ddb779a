"""Bases of the metrics: rows are checked and kept, and reduced to one number at the end."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric
from monai.utils import convert_to_tensor

from cpic_monai.losses import as_rows

__all__ = ["RowMetric", "ScoreOfRows"]


class RowMetric(CumulativeIterationMetric):
    """
    Checks shapes and finiteness, works in float64, keeps something of every row, and reduces the rows at the end.

    Parameters
    ----------
    columns : int
        Columns of the predictions.
    """

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns

    @abstractmethod
    def _rows(self, pred: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Values to keep of every row: float64 (R, Q) and (R, 1) in, (R, K) out."""

    @abstractmethod
    def reduce(self, rows: torch.Tensor) -> torch.Tensor:
        """
        The metric of these rows alone, without the buffer and without asking other processes.

        Parameters
        ----------
        rows : Tensor, float64, shape (R, K)
            What calling the metric returns.

        Returns
        -------
        Tensor, float64, scalar
        """

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """
        Values of every row.

        Parameters
        ----------
        y_pred : Tensor, shape (R, Q)
        y : Tensor, shape (R, 1) or (R,)

        Returns
        -------
        Tensor, float64, shape (R, K)

        Raises
        ------
        QuantileShapeError
            If the shapes do not belong together.
        ValueError
            If `y` is missing, there are no rows, or a value is not finite.
        """
        name = type(self).__name__
        if y is None:
            raise ValueError(f"{name} needs the true values y; got none (label the batch, or leave the metric out)")
        pred, truth = as_rows(y_pred, y, self.columns)
        if not len(pred):
            raise ValueError(f"{name} got a batch without rows; every scan must bring at least one visit")
        # Plain tensors: a MetaTensor's metadata would be carried by every row of the buffer.
        pred = convert_to_tensor(pred, dtype=torch.float64, track_meta=False)
        truth = convert_to_tensor(truth, dtype=torch.float64, device=pred.device, track_meta=False)
        for what, values in (("predictions", pred), ("true values", truth)):
            bad = int((~torch.isfinite(values)).sum())
            if bad:
                raise ValueError(
                    f"{name}: {bad} of {values.numel()} {what} are not finite (NaN or infinite) in a batch of "
                    f"{len(values)} rows; leave rows without a truth out, and look for a diverged network otherwise"
                )
        return self._rows(pred, truth)

    def aggregate(self) -> torch.Tensor:
        """
        The metric over all rows of all processes since the last reset; every process must call it.

        Returns
        -------
        Tensor, float64, scalar

        Raises
        ------
        ValueError
            If there are no rows.
        """
        rows = self.get_buffer()
        if not isinstance(rows, torch.Tensor):
            raise ValueError(f"{type(self).__name__} has no rows to aggregate; was the data loader empty?")
        return self.reduce(rows)


class ScoreOfRows(RowMetric):
    """Base of the metrics that need all predictions and truths at once: areas under curves, concordance."""

    @abstractmethod
    def of(self, pred: torch.Tensor, truth: torch.Tensor) -> float:
        """The metric of float64 predictions (R, Q) and truths (R,); NaN where it has no value."""

    def _rows(self, pred: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return torch.cat([pred.detach(), truth], dim=1)

    def reduce(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.of(rows[:, :-1].cpu(), rows[:, -1].cpu()), dtype=torch.float64)

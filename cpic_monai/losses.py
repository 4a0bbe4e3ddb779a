"""Losses of the head: pinball (quantiles, what C-PIC is trained with), cross-entropy (classes), Cox (survival)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.utils import LossReduction
from torch import nn

__all__ = [
    "ClassLoss",
    "CoxLoss",
    "PinballLoss",
    "QuantileShapeError",
    "as_rows",
    "check_quantiles",
    "cox_partial_likelihood",
    "pinball",
]
TIES = ("efron", "breslow")


class QuantileShapeError(ValueError):
    """Predicted quantiles and targets whose shapes do not belong together."""


def check_quantiles(quantiles: Sequence[float]) -> tuple[float, ...]:
    """
    Quantile levels as a tuple, checked.

    Parameters
    ----------
    quantiles : sequence of float
        Levels, strictly increasing, each strictly between 0 and 1.

    Returns
    -------
    tuple of float

    Raises
    ------
    ValueError
        If there is no level, one is outside (0, 1), or they do not increase.
    """
    levels = tuple(float(level) for level in quantiles)
    if not levels:
        raise ValueError("quantiles is empty; give at least one level, e.g. [0.2, 0.5, 0.8]")
    if any(not 0.0 < level < 1.0 for level in levels):
        raise ValueError(f"quantiles must lie strictly between 0 and 1, found {list(levels)}")
    if any(a >= b for a, b in pairwise(levels)):
        raise ValueError(f"quantiles must increase strictly, found {list(levels)}; sort them and drop repeats")
    return levels


def as_rows(pred: torch.Tensor, target: torch.Tensor, n_quantiles: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Check that predictions and targets are the same rows, and return the target as a column.

    Parameters
    ----------
    pred : Tensor, shape (R, Q), floating
        Predicted quantiles, one row a visit.
    target : Tensor, shape (R, 1) or (R,)
        True values of the same rows.
    n_quantiles : int
        The Q that is expected.

    Returns
    -------
    tuple of Tensor, shapes (R, Q) and (R, 1)

    Raises
    ------
    QuantileShapeError
        If the shapes differ from these. Broadcasting is refused, because (R,) against (R, 1) would
        give R x R differences without a word.
    """
    if pred.ndim != 2 or pred.shape[1] != n_quantiles:
        raise QuantileShapeError(
            f"pred has shape {tuple(pred.shape)}, expected (rows, {n_quantiles}): one column for each quantile level; "
            "make the head's number of outputs equal the number of quantiles"
        )
    if target.ndim == 1:
        target = target.unsqueeze(1)
    if target.ndim != 2 or target.shape[1] != 1 or target.shape[0] != pred.shape[0]:
        raise QuantileShapeError(
            f"target has shape {tuple(target.shape)}, pred {tuple(pred.shape)}; expected target "
            f"({pred.shape[0]}, 1): one true value a predicted row (collate the visits of all scans in the same order)"
        )
    return pred, target


def pinball(pred: torch.Tensor, target: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """
    Pinball value of every row and level: ``max(q * (y - p), (q - 1) * (y - p))``.

    Parameters
    ----------
    pred : Tensor, shape (R, Q)
    target : Tensor, shape (R, 1)
    levels : Tensor, shape (Q,)
        Quantile levels, in the dtype and on the device of `pred`.

    Returns
    -------
    Tensor, shape (R, Q), in the unit of the target
    """
    error = target - pred
    return torch.maximum(levels * error, (levels - 1.0) * error)


class PinballLoss(nn.Module):
    """
    Pinball (quantile) loss, minimised by the conditional quantiles of the target.

    Parameters
    ----------
    quantiles : sequence of float
        Levels predicted by the columns of `pred`, strictly increasing within (0, 1).
    reduction : {"mean", "sum", "none"}
        "mean" averages over rows and levels, "sum" adds them, "none" returns the (R, Q) values.

    Notes
    -----
    NaN targets give a NaN loss: finiteness is not tested here, since on a GPU that would wait for the device at
    every step. The metrics refuse NaN, and engines may end a run on a NaN loss (Ignite's ``TerminateOnNan``).

    References
    ----------
    Koenker and Bassett, "Regression quantiles", Econometrica 46 (1978).
    """

    levels: torch.Tensor

    def __init__(
        self, quantiles: Sequence[float] = (0.2, 0.5, 0.8), reduction: LossReduction | str = LossReduction.MEAN
    ) -> None:
        super().__init__()
        self.quantiles = check_quantiles(quantiles)
        self.reduction = LossReduction(reduction)
        # Not persistent: the levels are configuration, and a loss in a checkpoint would only get in the way.
        self.register_buffer("levels", torch.tensor(self.quantiles, dtype=torch.float64), persistent=False)

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Loss of predicted quantiles.

        Parameters
        ----------
        pred : Tensor, shape (R, Q), floating
        target : Tensor, shape (R, 1) or (R,)

        Returns
        -------
        Tensor, scalar, or (R, Q) without reduction

        Raises
        ------
        QuantileShapeError
            See `as_rows`.
        """
        pred, target = as_rows(pred, target, len(self.quantiles))
        values = pinball(pred, target.to(pred), self.levels.to(pred))
        if self.reduction == LossReduction.MEAN:
            return values.mean()
        if self.reduction == LossReduction.SUM:
            return values.sum()
        return values

    def extra_repr(self) -> str:
        return f"quantiles={list(self.quantiles)}, reduction={self.reduction.value}"


class ClassLoss(nn.Module):
    """Cross-entropy of logits, with class numbers as a column of numbers, as cohorts give every outcome."""

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Mean over rows.

        Parameters
        ----------
        pred : Tensor, shape (R, K), floating
            Logits.
        target : Tensor, shape (R, 1) or (R,)
            Class numbers, 0 to K - 1.

        Returns
        -------
        Tensor, scalar
        """
        _, target = as_rows(pred, target, pred.shape[1])
        return nn.functional.cross_entropy(pred, target[:, 0].long())


class CoxLoss(nn.Module):
    """
    Negative log partial likelihood of Cox's proportional hazards model, divided by the number of events.

    Parameters
    ----------
    ties : {"efron", "breslow"}
        How events at the same time are handled; both agree where there are none.

    References
    ----------
    Cox, "Regression models and life-tables", JRSS B 34 (1972). Efron, "The efficiency of Cox's likelihood function for
    censored data", JASA 72 (1977). Katzman et al., "DeepSurv", BMC Medical Research Methodology 18 (2018).
    """

    def __init__(self, ties: str = "efron") -> None:
        super().__init__()
        if ties not in TIES:
            raise ValueError(f"ties must be one of {', '.join(TIES)}, found {ties!r}")
        self.ties = ties

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Loss of predicted log hazards; 0 (with a gradient of 0) where there is no event.

        Parameters
        ----------
        pred : Tensor, shape (R, 1), floating
            Log hazard ratio of each row.
        target : Tensor, shape (R, 1) or (R,)
            Time of an event, or minus the time of censoring (the convention of XGBoost's ``survival:cox``).

        Returns
        -------
        Tensor, scalar
        """
        pred, target = as_rows(pred, target, 1)
        events = (target > 0).sum().clamp(min=1)
        return -cox_partial_likelihood(pred[:, 0], target[:, 0], self.ties) / events

    def extra_repr(self) -> str:
        return f"ties={self.ties}"


def cox_partial_likelihood(risk: torch.Tensor, signed_time: torch.Tensor, ties: str = "efron") -> torch.Tensor:
    """
    Log partial likelihood of log hazards.

    Parameters
    ----------
    risk : Tensor, shape (R,)
    signed_time : Tensor, shape (R,)
        Time of an event, or minus the time of censoring.
    ties : {"efron", "breslow"}

    Returns
    -------
    Tensor, scalar
    """
    time, event = signed_time.abs(), signed_time > 0
    order = time.argsort(descending=True, stable=True)
    time, event, risk = time[order], event[order], risk[order]
    # The risk set of a row are all rows from its time on: up to the last one of that time in this order.
    _, moment, count = time.unique_consecutive(return_inverse=True, return_counts=True)
    last = count.cumsum(0) - 1
    at_risk = risk.logcumsumexp(0)[last][moment]
    if ties == "efron":
        dying = torch.where(event, risk, torch.full_like(risk, -torch.inf))
        peak = risk.detach().max()
        tied = risk.new_zeros(len(count)).index_add(0, moment, (dying - peak).exp())
        number = risk.new_zeros(len(count)).index_add(0, moment, event.to(risk))
        # Of the events of a moment, the one of rank l leaves the share l / number of all of them out of its risk set.
        before = event.to(risk).cumsum(0) - event.to(risk)
        rank = before - before[last - count + 1][moment]
        share = rank / number[moment].clamp(min=1)
        rest = ((at_risk - peak).exp() - share * tied[moment]).clamp(min=torch.finfo(risk.dtype).tiny)
        at_risk = torch.where(rank > 0, rest.log() + peak, at_risk)
    return torch.where(event, risk - at_risk, torch.zeros_like(risk)).sum()

"""The arithmetic of calibration: scores of visits, weighted by patient, to factors of the quantiles' distances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def width_factors(
    pred: Tensor, truth: Tensor, levels: Sequence[float], group: Tensor, symmetric: bool = True
) -> Tensor:
    """Factors of the distances between neighbouring quantiles, from the middle outwards.

    Parameters
    ----------
    pred
        Uncalibrated quantiles ``(R, Q)``; ``levels`` are theirs.
    truth
        ``(R, 1)``.
    group
        int64 ``(R,)``, each row's patient.
    symmetric
        See :class:`cpic_monai.calibration.ConformalCalibration`.

    Returns
    -------
    Tensor
        ``(Q,)``, at least 0; 1 for the middle.

    Raises
    ------
    ValueError
        If there are too few patients, or the levels are not symmetric about the middle one where they should be, or
        the middle one is not the median.
    """
    pairs, middle = _pairs(levels, symmetric), len(levels) // 2
    tiny = torch.finfo(pred.dtype).tiny
    widths = pred.new_ones(len(levels))
    for ends, share in pairs:
        now = stretched(pred, widths)
        scores = []
        for end in ends:
            inner, sign = (end + 1, -1.0) if end < middle else (end - 1, 1.0)
            step = (pred[:, end] - pred[:, inner]).abs().clamp_min(tiny)
            scores.append(sign * (truth[:, 0] - now[:, inner]) / step)
        factor = patient_quantile(torch.stack(scores).amax(0), group, share)
        widths[ends] = max(factor, 0.0)
    return widths


def patient_quantile(scores: Tensor, group: Tensor, share: float) -> float:
    """The smallest score that at least ``share`` of the weight does not exceed.

    Each of ``K`` patients has weight ``1 / (K + 1)``, divided evenly among its rows; the rest, a new patient's, lies at
    infinity.

    Parameters
    ----------
    scores
        ``(R,)``.
    group
        int64 ``(R,)``, each row's patient.

    Raises
    ------
    ValueError
        If ``K / (K + 1)`` is below ``share``.
    """
    _, member, rows = group.unique(return_inverse=True, return_counts=True)
    patients = len(rows)
    if patients < enough(share):
        raise ValueError(f"a share of {share:g} needs {enough(share)} patients to calibrate on, found {patients}")
    order = scores.argsort()
    weight = (1.0 / ((patients + 1) * rows[member].double()))[order].cumsum(0)
    place = int(torch.searchsorted(weight, share - 1e-9))
    return float(scores[order][min(place, len(scores) - 1)])


def stretched(quantiles: Tensor, widths: Tensor) -> Tensor:
    """Quantiles ``(R, Q)`` with the distances between neighbours multiplied by ``widths`` ``(Q,)``."""
    middle = quantiles.shape[1] // 2
    steps = quantiles.diff(dim=1) * torch.cat([widths[:middle], widths[middle + 1 :]])
    height = nn.functional.pad(steps.cumsum(1), (1, 0))
    return quantiles[:, middle : middle + 1] + (height - height[:, middle : middle + 1])


def _pairs(levels: Sequence[float], symmetric: bool) -> list[tuple[list[int], float]]:
    """Columns that share a factor, and the share of truths within them, from the middle outwards."""
    middle = len(levels) // 2
    if not symmetric:
        if not math.isclose(levels[middle], 0.5, abs_tol=1e-6):
            raise ValueError(
                f"the middle one of the levels {list(levels)} is {levels[middle]:g}: it is not stretched, so it would "
                "keep a share that is not its own; choose `quantiles` with the median in the middle"
            )
        below = [([k], 1.0 - levels[k]) for k in range(middle - 1, -1, -1)]
        return below + [([k], levels[k]) for k in range(middle + 1, len(levels))]
    if any(not math.isclose(low + high, 1.0, abs_tol=1e-6) for low, high in zip(levels, reversed(levels), strict=True)):
        raise ValueError(
            f"the levels {list(levels)} are not symmetric about one half, so no interval has one factor for both ends: "
            "set `calibration#symmetric` to false"
        )
    if len(levels) % 2 == 0 or len(levels) == 1:
        raise ValueError(
            f"the levels {list(levels)} lack a median with intervals about it: there is nothing to stretch"
        )
    ends = [(middle - j, middle + j) for j in range(1, middle + 1)]
    return [([low, high], levels[high] - levels[low]) for low, high in ends]


def enough(share: float) -> int:
    """Fewest patients ``K`` with ``K / (K + 1) >= share``."""
    return math.ceil(share / (1.0 - share) - 1e-6)


def patients_needed(levels: Sequence[float], symmetric: bool) -> int:
    """Fewest patients that these levels can be calibrated on; raises as :func:`width_factors` for its levels."""
    return max((enough(share) for _, share in _pairs(levels, symmetric)), default=0)


def patient_shares(pred: Tensor, truth: Tensor, group: Tensor) -> list[float]:
    """Share of truths at or below each quantile, every patient weighing the same."""
    _, member, rows = group.unique(return_inverse=True, return_counts=True)
    weight = 1.0 / (len(rows) * rows[member].double())
    return [round(float(share), 4) for share in weight @ (truth <= pred).double()]

"""Closed-form ridge regression on a batch's Gram matrix, scored by leaving one scan out.

The loss of the ``closed_form`` recipe: no basis to align and no head to train, only a kernel whose scans predict each
other. The leave-one-out residual of a ridge regression has a closed form (Allen's PRESS), so the whole batch costs
one Cholesky factorisation and the gradient reaches the encoder through the Gram matrix.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LeaveOneOutRidge(nn.Module):
    """Leave-one-scan-out predictions of a kernel ridge regression over visits.

    The kernel of two visits is ``phi . phi' * (a + b G)``, with ``phi = (1, tabular)`` and ``G`` the centred, normalised
    Gram matrix of their scans: tabular effects common to all, and tabular effects (for a decline: the slope over
    weeks) that depend on the scan.

    Parameters
    ----------
    penalty, tabular_weight, scan_weight
        Starting values of the ridge penalty and of ``a`` and ``b``; learned on a log scale.
    """

    def __init__(self, penalty: float = 0.3, tabular_weight: float = 10.0, scan_weight: float = 1.0) -> None:
        super().__init__()
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty), dtype=torch.float64))
        self.log_tabular = nn.Parameter(torch.tensor(math.log(tabular_weight), dtype=torch.float64))
        self.log_scan = nn.Parameter(torch.tensor(math.log(scan_weight), dtype=torch.float64))

    def forward(self, gram: Tensor, tabular: Tensor, scan_index: Tensor, target: Tensor) -> Tensor:
        """Predictions ``(R, 1)`` of every visit by the other scans' visits.

        Parameters
        ----------
        gram
            TT inner products of the batch's scans ``(S, S)``.
        tabular
            ``(R, F)`` of the visits; ``F`` may be 0.
        scan_index
            int64 ``(R,)``, each visit's scan.
        target
            Normalised targets ``(R, 1)``.
        """
        if gram.shape[0] < 3:
            raise ValueError(f"leave-one-out needs at least 3 scans a batch, found {gram.shape[0]}; raise `batch_size`")
        target = target.to(gram.dtype)
        row = gram.mean(1)
        centred = gram - row[:, None] - row[None, :] + gram.mean()
        centred = centred / torch.diagonal(centred).mean().clamp_min(1e-12)
        phi = torch.cat([tabular.new_ones((len(tabular), 1)), tabular], dim=1).to(gram.dtype)
        linear = phi @ phi.T
        scans = centred[scan_index][:, scan_index]
        kernel = linear * (self.log_tabular.exp() + self.log_scan.exp() * scans)
        system = kernel + self.log_penalty.exp() * torch.eye(len(kernel), dtype=gram.dtype, device=gram.device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
        weights = inverse @ target
        members, real = group_rows(scan_index, gram.shape[0])
        blocks = inverse[members[:, :, None], members[:, None, :]]
        pair = real[:, :, None] & real[:, None, :]
        blocks = torch.where(pair, blocks, torch.eye(members.shape[1], dtype=gram.dtype, device=gram.device))
        residual = torch.linalg.solve(blocks, weights[members] * real[..., None])
        left_out = torch.zeros_like(target).index_put((members[real],), residual[real])
        return (target - left_out).to(target.dtype)


def group_rows(group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Row numbers of each group, padded: int64 ``(groups, most)`` and the bool mask of real entries."""
    count = torch.bincount(group, minlength=groups)
    order = group.argsort(stable=True)
    start = count.cumsum(0) - count
    place = torch.arange(int(count.max()), device=group.device)
    real = place < count[:, None]
    return order[(start[:, None] + place).clamp_max(len(order) - 1)], real

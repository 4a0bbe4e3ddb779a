"""Closed-form ridge regression on a batch's Gram matrix, scored by leaving one patient out.

The loss of the ``closed_form`` recipe: no basis to align and no head to train, only a kernel whose scans predict each
other. The leave-one-out residual of a ridge regression has a closed form (Allen's PRESS), so the whole batch costs
one Cholesky factorisation and the gradient reaches the encoder through the Gram matrix.

A patient with several scans is left out with all of them, and so is a scan that comes twice in a batch (several passes
an epoch, each augmented anew): otherwise the twin predicts it, and the encoder learns to recognise patients.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

#: How tabular values enter the kernel, see :class:`LeaveOneOutRidge`.
KERNELS = ("product", "sum", "scan")


class LeaveOneOutRidge(nn.Module):
    """Leave-one-patient-out predictions of a kernel ridge regression over visits.

    With ``G`` the centred, normalised Gram matrix of the visits' scans and ``phi = (1, tabular)``, their kernel is

    - ``product``: ``phi . phi' * (a + b G)``: tabular effects common to all, and tabular effects (for a decline: the
      slope over weeks) that depend on the scan;
    - ``sum``: ``a phi . phi' + b G``: a scan's effect is one number, the same at all its visits;
    - ``scan``: ``a + b G``: tabular values have no part in it (the head sees them still).

    Parameters
    ----------
    penalty, tabular_weight, scan_weight
        Starting values of the ridge penalty and of ``a`` and ``b``; learned on a log scale.
    kernel
        One of :data:`KERNELS`.

    Raises
    ------
    ValueError
        For an unknown kernel.
    """

    def __init__(
        self, penalty: float = 0.3, tabular_weight: float = 10.0, scan_weight: float = 1.0, kernel: str = "product"
    ) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"config key `ridge#kernel` must be one of {', '.join(KERNELS)}, found {kernel!r}")
        self.kernel = kernel
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty), dtype=torch.float64))
        self.log_tabular = nn.Parameter(torch.tensor(math.log(tabular_weight), dtype=torch.float64))
        self.log_scan = nn.Parameter(torch.tensor(math.log(scan_weight), dtype=torch.float64))

    def forward(
        self, gram: Tensor, tabular: Tensor, scan_index: Tensor, target: Tensor, group: Tensor | None = None
    ) -> Tensor:
        """Predictions ``(R, 1)`` of every visit by the other patients' visits.

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
        group
            int64 ``(R,)``, any number that each visit's patient alone has; every scan is a patient by default.

        Raises
        ------
        ValueError
            If there are fewer than three scans, or all are of one patient.
        """
        system = self._system(gram, tabular, scan_index)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(system.matrix))
        target = target.to(gram.dtype)
        _, members, real = _patients(group, scan_index)
        residual = _left_out_residuals(inverse, inverse @ target, members, real)
        left_out = torch.zeros_like(target).index_put((members[real],), residual[real])
        return target - left_out

    @torch.no_grad()
    def scan_effects(
        self, gram: Tensor, tabular: Tensor, scan_index: Tensor, target: Tensor, group: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the regression reads from a scan: its own coefficients of ``phi = (1, tabular)``.

        Parameters are those of :meth:`forward`.

        Returns
        -------
        dual, left_out
            ``dual`` ``(S, 1 + F)``: a scan's coefficients are its centred inner products with the training scans times
            ``dual``. ``left_out`` ``(S, 1 + F)``: each training scan's coefficients by the regression on all other
            patients, as uncertain as a new scan's will be; a head fitted on them does not trust them too much.
            ``(S, 1)`` with kernels other than ``product``, where a scan has one coefficient, that of 1.
        """
        system = self._system(gram, tabular, scan_index)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(system.matrix))
        weights = inverse @ target.to(gram.dtype)
        patient, members, real = _patients(group, scan_index)
        residual = _left_out_residuals(inverse, weights, members, real)  # (P, most, 1)
        # Without patient g the weights of the others are w - A^-1[:, g] (A^-1[g, g])^-1 w[g].
        columns = inverse[:, members] * real  # (R, P, most)
        others = weights - torch.einsum("rgm,gmo->rg", columns, residual)  # (R, P): column g leaves patient g out
        others = others * (patient[:, None] != torch.arange(len(members), device=gram.device))
        others = others[:, patient.new_zeros(gram.shape[0]).index_put((scan_index,), patient)]  # (R, S)
        factor = self.log_scan.exp() / system.scale
        blank = gram.new_zeros(gram.shape[0], system.slopes.shape[1])
        dual = factor * blank.index_add(0, scan_index, weights * system.slopes)
        reach = system.centred[:, scan_index]  # (S, R)
        left_out = factor * torch.einsum("gr,rg,rf->gf", reach, others, system.slopes)
        return dual, left_out

    def _system(self, gram: Tensor, tabular: Tensor, scan_index: Tensor) -> _System:
        if gram.shape[0] < 3:
            raise ValueError(f"leave-one-out needs at least 3 scans a batch, found {gram.shape[0]}; raise `batch_size`")
        row = gram.mean(1)
        centred = gram - row[:, None] - row[None, :] + gram.mean()
        scale = torch.diagonal(centred).mean().clamp_min(1e-12)
        phi = torch.cat([tabular.new_ones((len(tabular), 1)), tabular], dim=1).to(gram.dtype)
        common = phi[:, :1] if self.kernel == "scan" else phi
        slopes = phi if self.kernel == "product" else phi[:, :1]
        scans = (centred / scale)[scan_index][:, scan_index]
        kernel = self.log_tabular.exp() * (common @ common.T) + self.log_scan.exp() * (slopes @ slopes.T) * scans
        matrix = kernel + self.log_penalty.exp() * torch.eye(len(kernel), dtype=gram.dtype, device=gram.device)
        return _System(matrix, slopes, centred, scale)


class _System(NamedTuple):
    """The regularised kernel of the visits ``(R, R)``, what multiplies their scans' effects ``(R, 1 + F)`` or
    ``(R, 1)``, the scans' centred Gram matrix and its scale."""

    matrix: Tensor
    slopes: Tensor
    centred: Tensor
    scale: Tensor


def _patients(group: Tensor | None, scan_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each visit's patient int64 ``(R,)``, counted from 0, and the patients' rows as :func:`group_rows` gives them."""
    patient = (scan_index if group is None else group).unique(return_inverse=True)[1]
    count = int(patient.max()) + 1
    if count < 2:
        raise ValueError(
            "all scans of the batch are of one patient, whom nobody is left to predict; raise `batch_size`, or check "
            "`group_column`"
        )
    return patient, *group_rows(patient, count)


def _left_out_residuals(inverse: Tensor, weights: Tensor, members: Tensor, real: Tensor) -> Tensor:
    """Residuals ``(P, most, 1)`` of each patient's visits when left out: ``(A^-1[g, g])^-1 (A^-1 y)[g]``."""
    blocks = inverse[members[:, :, None], members[:, None, :]]
    pair = real[:, :, None] & real[:, None, :]
    blocks = torch.where(pair, blocks, torch.eye(members.shape[1], dtype=inverse.dtype, device=inverse.device))
    return torch.linalg.solve(blocks, weights[members] * real[..., None])


def group_rows(group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Row numbers of each group, padded: int64 ``(groups, most)`` and the bool mask of real entries."""
    count = torch.bincount(group, minlength=groups)
    order = group.argsort(stable=True)
    start = count.cumsum(0) - count
    place = torch.arange(int(count.max()), device=group.device)
    real = place < count[:, None]
    return order[(start[:, None] + place).clamp_max(len(order) - 1)], real

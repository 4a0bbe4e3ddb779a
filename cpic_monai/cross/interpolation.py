"""Differentiable cross-interpolation: a TT-core from a mode's values and its pivot rows (paper Sec. 3.2, step 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ridge:
    """The regularisation of the cross matrix's inverse.

    Attributes
    ----------
    relative
        Ridge as a share of the mean squared pivot row.
    floor
        Ridge in squared units of the encoding, for scans that are all background. It bounds the gradient by
        about ``1 / (2 sqrt(floor))``; an exact decomposition of tiny values wants it smaller.
    refinements
        Steps of iterated Tikhonov: each squares away the bias of the ridge and the rounding of the normal equations,
        for two small matrix products.
    """

    relative: float = 1e-8
    floor: float = 1e-10
    refinements: int = 1


def interpolate(matrix: Tensor, rows: Tensor, alive: Tensor, ridge: Ridge) -> Tensor:
    """Coefficients ``(..., R, r)`` that express every row by the pivot rows, by least squares over all columns.

    Parameters
    ----------
    matrix
        Float64 ``(..., R, C)``.
    rows
        Pivots int64 ``(..., r)``, broadcast over scans.
    alive
        Bool ``(..., r)``; a dead pivot's column of the result is zero.
    ridge
        See :class:`Ridge`.

    Notes
    -----
    A plain solve, ``lstsq`` or ``pinv`` on the cross matrix has gradients of 1e6 to 1e18 on constant background;
    the masked ridge on the Gram matrix of the pivot rows keeps them bounded.
    """
    lead = matrix.shape[:-2]
    rank, columns = rows.shape[-1], matrix.shape[-1]
    pivots = matrix.gather(-2, rows[..., None].expand(*lead, rank, columns))
    mask = alive.to(matrix.dtype).expand(*lead, rank)
    pivots = pivots * mask[..., None]
    gram = pivots @ pivots.transpose(-1, -2)
    weight = torch.diagonal(gram, dim1=-2, dim2=-1).sum(-1) / mask.sum(-1).clamp_min(1)
    lift = ridge.relative * weight + ridge.floor
    # A dead pivot's row of the Gram matrix is zero: one on its diagonal leaves the others alone.
    factor = _cholesky(gram + torch.diag_embed(lift[..., None] * mask + (1 - mask)))
    out = torch.cholesky_solve(pivots @ matrix.transpose(-1, -2), factor).transpose(-1, -2)
    for _ in range(ridge.refinements):
        rest = matrix - out @ pivots
        out = out + torch.cholesky_solve(pivots @ rest.transpose(-1, -2), factor).transpose(-1, -2)
    return out * mask[..., None, :]


#: Relative to the largest entry, beyond the rounding of each precision.
JITTERS = {torch.float64: (1e-12, 1e-11, 1e-10, 1e-9), torch.float32: (1e-6, 1e-5, 1e-4, 1e-3)}


def _cholesky(matrix: Tensor) -> Tensor:
    """Cholesky factor, with jitter only for the matrices where it failed (as linear_operator does).

    Raises
    ------
    torch.linalg.LinAlgError
        Naming how many matrices hold NaN or stay indefinite; on a GPU NaN comes out instead, because to look would
        make the host wait in the middle of a sweep.
    """
    if matrix.device.type != "cpu":
        return cholesky_without_waiting(matrix)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not bool(info.any()):
        return factor
    if not bool(torch.isfinite(matrix).all()):
        count = int((~torch.isfinite(matrix)).flatten(-2).any(-1).sum())
        raise torch.linalg.LinAlgError(
            f"{count} of {info.numel()} cross matrices hold NaN or infinite values: "
            "the encoder diverged or a scan holds such voxels"
        )
    for jitter in JITTERS[matrix.dtype]:
        factor, failed = torch.linalg.cholesky_ex(_lifted(matrix, info, jitter))
        if not bool(failed.any()):
            return factor
    raise torch.linalg.LinAlgError(
        f"{int((failed > 0).sum())} of {info.numel()} cross matrices are indefinite even with jitter "
        f"{JITTERS[matrix.dtype][-1]:.0e}; raise the ridge"
    )


def cholesky_without_waiting(matrix: Tensor) -> Tensor:
    """The same factor without a branch on data: on a GPU nothing is copied to the host.

    One retry, at the largest jitter, is always computed; the matrices are ``r x r``, so it costs next to nothing. NaN
    where that fails, too: the factor that ``cholesky_ex`` leaves there is finite and wrong.
    """
    _, info = torch.linalg.cholesky_ex(matrix)
    factor, failed = torch.linalg.cholesky_ex(_lifted(matrix, info, JITTERS[matrix.dtype][-1]))
    return torch.where(failed[..., None, None] > 0, torch.nan, factor)


def _lifted(matrix: Tensor, info: Tensor, jitter: float) -> Tensor:
    """The matrices with ``jitter``, relative to their largest entry, on the diagonals of those that failed."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    scale = torch.diagonal(matrix, dim1=-2, dim2=-1).amax(-1)[..., None, None].detach()
    return matrix + torch.where(info[..., None, None] > 0, scale * jitter, torch.zeros_like(scale)) * eye

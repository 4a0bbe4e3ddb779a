"""Orthogonal forms, truncation and the exact TT-SVD ([38], Algorithms 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cpic_monai.tensor_train.core import TensorTrain


def orthogonalize(train: TensorTrain) -> TensorTrain:
    """The same tensors with every core but the last left-orthogonal (QR sweep)."""
    cores = list(train.cores)
    for k in range(len(cores) - 1):
        b, r, n, s = cores[k].shape
        q, upper = torch.linalg.qr(cores[k].reshape(b, r * n, s))
        cores[k] = q.reshape(b, r, n, q.shape[-1])
        cores[k + 1] = torch.einsum("brs,bsnt->brnt", upper, cores[k + 1])
    return TensorTrain(tuple(cores))


def round_train(train: TensorTrain, rank: int) -> TensorTrain:
    """Quasi-optimal truncation of every bond to at most ``rank`` (TT-rounding).

    The error is at most ``sqrt(K - 1)`` times that of the best train of that rank.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, found {rank}")
    cores = list(orthogonalize(train).cores)
    for k in range(len(cores) - 1, 0, -1):
        b, r, n, s = cores[k].shape
        u, sigma, vh = torch.linalg.svd(cores[k].reshape(b, r, n * s), full_matrices=False)
        keep = min(rank, sigma.shape[-1])
        cores[k] = vh[:, :keep].reshape(b, keep, n, s)
        cores[k - 1] = torch.einsum("brns,bst->brnt", cores[k - 1], u[..., :keep] * sigma[:, None, :keep])
    return TensorTrain(tuple(cores))


def truncate_train(train: TensorTrain, rank: int) -> TensorTrain:
    """The train of :func:`round_train` as a projection of ``train`` on a fixed subspace.

    The right-orthogonal cores are constants of the backward pass and the first core carries the data, so the result is
    linear in the tensor and its gradient finite where singular values coincide or vanish (as in ``tt_svd``).

    Raises
    ------
    ValueError
        If ``rank`` is below 1.
    """
    with torch.no_grad():
        basis = round_train(train.detach(), rank).cores[1:]
    state = None  # (B, r, q): what is right of a bond, in the basis's coordinates
    for core, fixed in zip(reversed(train.cores[1:]), reversed(basis), strict=True):
        carried = core if state is None else torch.einsum("brns,bsq->brnq", core, state)
        state = carried.flatten(2) @ fixed.flatten(2).transpose(1, 2)
    first = train.cores[0]
    return TensorTrain((first if state is None else torch.einsum("brns,bsq->brnq", first, state), *basis))


def tt_svd(unfolded: Tensor, rank: int) -> TensorTrain:
    """TT-SVD of dense tensors ``(B, n_1, ..., n_K, C)`` (see :meth:`cpic_monai.grid.IndexGrid.unfold`).

    The orthogonal factors are constants of the backward pass and the last core carries the data: the projection
    of the tensor on a fixed subspace. It is linear in the tensor, so gradients stay finite where singular values
    coincide, which differentiating the SVD itself does not give.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, found {rank}")
    b, channels = unfolded.shape[0], unfolded.shape[-1]
    sizes: Sequence[int] = unfolded.shape[1:-1]
    cores = []
    rest, r = unfolded.reshape(b, 1, -1), 1
    for n in sizes[:-1]:
        matrix = rest.reshape(b, r * n, -1)
        with torch.no_grad():
            u = _leading_left(matrix, rank)
        cores.append(u.reshape(b, r, n, u.shape[-1]))
        rest, r = u.transpose(1, 2) @ matrix, u.shape[-1]
    cores.append(rest.reshape(b, r, sizes[-1], channels))
    return TensorTrain(tuple(cores))


def _leading_left(matrix: Tensor, rank: int) -> Tensor:
    """Leading left singular vectors ``(B, m, min(rank, m, n))``."""
    rows, cols = matrix.shape[1:]
    if cols > 4 * rows:
        # R of the tall transpose keeps the singular values without squaring them.
        _, upper = torch.linalg.qr(matrix.transpose(1, 2), mode="r")
        matrix = upper.transpose(1, 2)
    u, _, _ = torch.linalg.svd(matrix, full_matrices=False)
    return u[..., : min(rank, rows, cols)]

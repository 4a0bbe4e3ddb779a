"""Truncation of a train to the rank wanted, with gradients that stay finite."""

from __future__ import annotations

import torch

from cpic_monai.tensor_train import TensorTrain, round_train


def truncate_train(train: TensorTrain, rank: int) -> TensorTrain:
    """The train of :func:`cpic_monai.tensor_train.round_train` as a projection of ``train`` on a fixed subspace.

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

"""Many entries of tensor trains at once, where places lie together: common prefixes are multiplied out once."""

from __future__ import annotations

import torch
from torch import Tensor

from cpic_monai.tensor_train.core import TensorTrain


def entries(train: TensorTrain, digits: Tensor) -> Tensor:
    """Values of :meth:`TensorTrain.at`, quicker where places share their leading digits.

    The voxels of a patch agree in the coarse bits of an interleaved (QTT) unfolding. A product of leading cores is
    formed once for each distinct prefix, so that a patch of ``e**3`` voxels costs about ``2 e**3`` vector-matrix
    products in the place of ``K e**3``, and no core is copied for a voxel.

    Parameters
    ----------
    train
        ``B`` tensors of ``K`` modes and ``C`` channels.
    digits
        Mode digits int64 ``(M, K)`` of all tensors, or ``(B, M, K)`` of each.

    Returns
    -------
    Tensor
        ``(B, M, C)``, differentiable in the cores.

    Raises
    ------
    ValueError
        If there are not as many digits as modes.
    """
    if digits.shape[-1] != len(train.cores):
        raise ValueError(f"{digits.shape[-1]} digits a place for a train of {len(train.cores)} modes")
    batch, count = train.batch, digits.shape[-2]
    places = digits.expand(batch, -1, -1).flatten(0, 1)  # (B*M, K)
    scan = torch.arange(batch, device=digits.device)  # of each distinct prefix
    prefix = scan.repeat_interleave(count)  # of each place
    state = train.cores[0].new_ones((batch, 1))
    for k, core in enumerate(train.cores):
        n, known = core.shape[2], len(state)
        # Sorted by tensor and digit, so that every core slice meets all its prefixes in one matrix product.
        slices = scan[prefix] * n + places[:, k]
        named, prefix = torch.unique(slices * known + prefix, return_inverse=True)
        of_slice, parent = torch.div(named, known, rounding_mode="floor"), named % known
        sizes = torch.bincount(of_slice, minlength=batch * n).tolist()
        matrices = core.transpose(1, 2).flatten(0, 1)  # (B*n, r, s)
        parts = zip(state[parent].split(sizes), matrices, strict=True)
        state = torch.cat([part @ matrix for part, matrix in parts])
        scan = torch.div(of_slice, n, rounding_mode="floor")
    return state[prefix].reshape(batch, count, train.channels)

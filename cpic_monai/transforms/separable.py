"""Interpolation along one axis after the other: for views whose axes run along the scan's own (resizing, spacing)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: A view's axis may lean from the scan's by this many source voxels at a patch's edge and still count as along it.
TOLERANCE = 1e-4
#: Bytes of boxes in float32 interpolated at once: what stays in a processor's cache.
BYTES_AT_ONCE = 1 << 20


def source_axes(linear: np.ndarray, half: float) -> tuple[int, int, int] | None:
    """Which source axis each output axis runs along, or None where one runs along several.

    Parameters
    ----------
    linear
        (3, 3) output to source.
    half
        Output voxels from a patch's centre to its edge.
    """
    size = np.abs(linear)
    i, j, k = (int(a) for a in size.argmax(axis=0))
    main = np.zeros_like(size)
    main[[i, j, k], range(3)] = size[[i, j, k], range(3)]
    if sorted((i, j, k)) != [0, 1, 2] or (size - main).max() * half > TOLERANCE:
        return None
    return i, j, k


def tap_weights(places: np.ndarray, extent: int, order: int) -> Tensor:
    """How much each voxel of a line counts at each place: (N, M) places in voxels to (N, M, extent) float32.

    ``order`` 0 is the nearest voxel, 1 linear, 3 the cubic B-spline (of coefficients).
    """
    voxels = np.arange(extent)
    if order == 0:
        weights = np.floor(places + 0.5)[..., None] == voxels
    elif order == 1:
        weights = np.maximum(0, 1 - np.abs(places[..., None] - voxels))
    else:
        far = np.abs(places[..., None] - voxels)
        weights = np.where(far < 1, 2 / 3 - far**2 * (1 - far / 2), np.maximum(0, 2 - far) ** 3 / 6)
    return torch.from_numpy(weights.astype(np.float32))


def interpolate_separably(
    boxes: np.ndarray, places: Sequence[np.ndarray], axes: tuple[int, int, int], order: int
) -> np.ndarray:
    """Values of boxes on a grid that runs along their axes: three products with small matrices.

    Parameters
    ----------
    boxes
        (N, a, b, c) of any real type.
    places
        For each source axis (N, size): where in its box each patch looks, in voxels.
    axes
        Source axis of each output axis, see :func:`source_axes`.
    order
        See :func:`tap_weights`.

    Returns
    -------
    numpy.ndarray
        (N, size, size, size) float32 in output axes.
    """
    count, *extent = boxes.shape
    size = places[0].shape[1]
    weights = [tap_weights(p, n, order) for p, n in zip(places, extent, strict=True)]
    out = torch.empty((count, size, size, size))
    step = max(1, BYTES_AT_ONCE // (4 * int(np.prod(extent))))
    for first in range(0, count, step):
        some = slice(first, first + step)
        values = torch.from_numpy(boxes[some].astype(np.float32))
        n, a, b, c = values.shape
        values = torch.bmm(weights[0][some], values.reshape(n, a, b * c)).reshape(n, size * b, c)
        values = torch.bmm(values, weights[2][some].transpose(1, 2)).reshape(n * size, b, size)
        middle = weights[1][some].repeat_interleave(size, dim=0)
        values = torch.bmm(middle, values).reshape(n, size, size, size)
        out[some] = values.permute(0, *(1 + axis for axis in axes))
    return out.numpy()

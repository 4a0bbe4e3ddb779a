"""What overlapping patches share is made once: equal voxels, and the whole view where patches cover it many times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

#: Edge of the cubes that a view is assembled from, odd.
TILE = 15
#: The whole view is made where patches hold at least this many times its voxels, and it has no more than MOST_VOXELS.
REPEATS, MOST_VOXELS = 2, 1 << 24


def distinct(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Each voxel of (N, 3) int64 once, and which of them a row is; the rows as they are, and None, if all differ."""
    if not len(voxels):
        return voxels, None
    low = voxels.min(axis=0)
    extent = voxels.max(axis=0) - low + 1
    if np.prod(extent.astype(float)) > 2**62:  # more places than numbers to name them by
        return voxels, None
    _, first, where = np.unique(np.ravel_multi_index(tuple((voxels - low).T), extent), True, True)
    return (voxels, None) if len(first) == len(voxels) else (voxels[first], where)


def whole_view_pays(shape: Sequence[int], cubes: int, size: int) -> bool:
    """Whether making every voxel of a view of ``shape`` once is less work than so many cubes of ``size``."""
    voxels = float(np.prod([float(n) for n in shape]))
    return voxels <= MOST_VOXELS and cubes * size**3 >= REPEATS * voxels


def assemble(read: Callable[[np.ndarray, int], np.ndarray], shape: Sequence[int], tile: int = TILE) -> np.ndarray:
    """All voxels of a view of ``shape`` from adjoining cubes, (C, *shape).

    ``read`` gives cubes (N, C, tile, tile, tile) around voxels (N, 3) int64; they may reach out of the view.
    """
    counts = [-(-n // tile) for n in shape]
    centres = np.array(list(product(*(range(tile // 2, n * tile, tile) for n in counts))), dtype=np.int64)
    cubes = read(centres, tile)
    channels = cubes.shape[1]
    whole = cubes.reshape(*counts, channels, tile, tile, tile).transpose(3, 0, 4, 1, 5, 2, 6)
    d, h, w = shape
    padded = whole.reshape(channels, *(n * tile for n in counts))
    return np.ascontiguousarray(padded[:, :d, :h, :w])


def cut(whole: np.ndarray, centres: np.ndarray, size: int, step: int, fill: float) -> np.ndarray:
    """Cubes whose voxels lie ``step`` apart, (N, C, size, size, size), around voxels (N, 3) of ``whole`` (C, D, H, W).

    Outside of it is ``fill``; the voxels themselves lie inside.
    """
    half = step * (size // 2)
    padded = np.pad(whole, ((0, 0), *((half, half),) * 3), constant_values=fill)
    every = sliding_window_view(padded, (2 * half + 1,) * 3, axis=(1, 2, 3))[..., ::step, ::step, ::step]
    i, j, k = centres.T
    return np.ascontiguousarray(every[:, i, j, k].swapaxes(0, 1))

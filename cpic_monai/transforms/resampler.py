"""Reading cubes of voxels of a scan through an affine: gathered where voxels meet voxels, interpolated elsewhere."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torch.nn.functional import grid_sample

from cpic_monai.transforms.separable import interpolate_separably, source_axes
from cpic_monai.volumes import CachedVolume

#: Bytes of source boxes gathered at once.
CHUNK_BYTES = 128 << 20
#: A view whose axes are this close to the source's, and whose voxels this close to its voxels, is gathered.
LINEAR_TOLERANCE, SHIFT_TOLERANCE = 1e-5, 1e-3


def is_grid_aligned(affine: np.ndarray) -> bool:
    """True where output voxels fall on source voxels: a signed permutation with a whole translation."""
    linear, shift = affine[:3, :3], affine[:3, 3]
    whole = np.round(linear)
    return bool(
        np.abs(linear - whole).max() < LINEAR_TOLERANCE
        and (np.abs(whole).sum(axis=0) == 1).all()
        and (np.abs(whole).sum(axis=1) == 1).all()
        and np.abs(shift - np.round(shift)).max() < SHIFT_TOLERANCE
    )


def cube_offsets(size: int) -> np.ndarray:
    """Offsets of a cube's voxels from its centre: (size**3, 3) float64, the last axis fastest."""
    line = np.arange(size) - size // 2
    return np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float64)


def gather_cubes(volume: CachedVolume, affine: np.ndarray, centres: np.ndarray, size: int) -> np.ndarray:
    """Cubes around output voxels ``centres`` (N, 3) where ``affine`` (output to source) is grid-aligned.

    Returns
    -------
    numpy.ndarray
        (N, size, size, size) float32 in output axes; outside the source, its nearest voxel.
    """
    linear = np.round(affine[:3, :3]).astype(np.int64)
    middle = np.rint(centres @ linear.T + affine[:3, 3]).astype(np.int64)
    boxes = volume.boxes(middle - size // 2, (size, size, size))
    # Output axis b runs along source axis a, forwards or backwards.
    along = [int(np.flatnonzero(linear[:, b])[0]) for b in range(3)]
    turned = boxes.transpose(0, *(1 + a for a in along))
    back = tuple(slice(None, None, int(linear[a, b])) for b, a in enumerate(along))
    return np.ascontiguousarray(turned[(slice(None), *back)], dtype=np.float32)


def interpolate_cubes(
    volume: CachedVolume, affine: np.ndarray, centres: np.ndarray, size: int, spread: float, order: int
) -> np.ndarray:
    """Cubes around output voxels through any affine, all cubes at once.

    Parameters
    ----------
    volume
        The scan; for ``order`` 3 its spline coefficients.
    affine
        (4, 4) output voxel to voxel of ``volume``.
    centres
        (N, 3) output voxels.
    size, spread
        Voxels along a cube's edge, and their distance in output voxels.
    order
        0 nearest, 1 linear, 3 cubic B-spline.

    Returns
    -------
    numpy.ndarray
        (N, size, size, size) float32; positions outside the voxel centres are moved to the nearest.
    """
    linear = affine[:3, :3]
    half = spread * (size // 2)
    reach = np.abs(linear).sum(axis=1) * half
    middle = centres @ linear.T + affine[:3, 3]
    before, after = {0: (0, 1), 1: (0, 1), 3: (1, 2)}[order]
    extent = np.ceil(2 * reach - 1e-6).astype(np.int64) + 1 + before + after
    starts = np.floor(middle - reach).astype(np.int64) - before
    axes = source_axes(linear, half)
    offsets = cube_offsets(size) * spread @ linear.T
    out = np.empty((len(centres), size, size, size), np.float32)
    rows_at_once = max(1, int(CHUNK_BYTES // (extent.prod() * 4 + (size**3 * 40 if axes is None else 0))))
    order_of_reading = np.arange(len(centres))
    if len(centres) > rows_at_once:
        # Neighbours together, slowest axis first, so that a block is met in one chunk or two and not in all.
        order_of_reading = np.lexsort((starts // np.array(volume.block_shape)).T)
    last = np.array(volume.shape) - 1.0

    def in_box(places: np.ndarray, rows: np.ndarray, axis: int) -> np.ndarray:
        """Places along one source axis (R, M), relative to the boxes' corners."""
        inside = np.clip(places, 0, last[axis]) - starts[rows, axis, None]
        # A cube that lies wholly outside has places far from its box: they are masked by the caller.
        return np.clip(inside, before, extent[axis] - after)

    for first in range(0, len(centres), rows_at_once):
        rows = order_of_reading[first : first + rows_at_once]
        boxes = volume.boxes(starts[rows], extent.tolist(), "mirror" if order == 3 else "replicate")
        if axes is None:
            places = [in_box(middle[rows, a, None] + offsets[:, a], rows, a) for a in range(3)]
            out[rows] = _at(boxes, np.stack(places, axis=-1), order).reshape(-1, size, size, size)
        else:
            line = (np.arange(size) - size // 2) * spread
            steps = [linear[a, axes.index(a)] * line for a in range(3)]
            places = [in_box(middle[rows, a, None] + steps[a], rows, a) for a in range(3)]
            out[rows] = interpolate_separably(boxes, places, axes, order)
    return out


def _at(boxes: np.ndarray, places: np.ndarray, order: int) -> np.ndarray:
    """Values of boxes (N, a, b, c) at their own places (N, M, 3), shape (N, M) float32."""
    count, *extent = boxes.shape
    if order == 0:
        nearest = np.floor(places + 0.5).astype(np.int64)
        flat = (nearest[..., 0] * extent[1] + nearest[..., 1]) * extent[2] + nearest[..., 2]
        return np.take_along_axis(boxes.reshape(count, -1), flat, axis=1).astype(np.float32)
    values = np.ascontiguousarray(boxes, dtype=np.float32)
    if order == 1:
        # grid_sample names the axes last to first, from -1 at the first voxel's centre to 1 at the last one's.
        unit = (places * (2.0 / (np.array(extent) - 1)) - 1).astype(np.float32)[..., ::-1]
        grid = torch.from_numpy(np.ascontiguousarray(unit)).view(count, -1, 1, 1, 3)
        sampled = grid_sample(torch.from_numpy(values)[:, None], grid, "bilinear", "border", align_corners=True)
        return sampled.view(count, -1).numpy()
    # The boxes stacked along their first axis are one image for one call; no place is nearer to the next box than
    # its own margin, so no spline reaches over.
    stacked = places + (np.arange(count) * extent[0])[:, None, None] * np.array([1, 0, 0])
    return map_coordinates(
        values.reshape(-1, *extent[1:]), stacked.reshape(-1, 3).T, np.float32, order=order, prefilter=False
    ).reshape(count, -1)


def outside(places: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """True where places (..., 3) lie beyond the outer faces of the voxels of a grid of ``shape``."""
    slack = 1e-3
    beyond = (places < -0.5 - slack) | (places > np.array(shape) - 0.5 + slack)
    return np.asarray(beyond.any(axis=-1))

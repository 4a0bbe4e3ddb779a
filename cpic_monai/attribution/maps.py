"""Picked voxels and their attributions on the scan's own grid."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cpic_monai.attribution.explain import Explained
from cpic_monai.transforms import VirtualScan

#: Label map value of each class; 0 is a voxel that was not looked at.
CLASSES = {"picked": 1, "weak": 2, "raises": 3, "lowers": 4}

#: A map holds all of the scan's own voxels: none of more bytes is made.
MOST_BYTES = 2**31
CHUNK = 2**21


def attribution_classes(attribution: Tensor, weak: float = 0.5, strong: float = 0.9) -> Tensor:
    """Classes int64 ``(N,)`` of attributions ``(N,)`` by the quantiles of their sizes; values as in ``CLASSES``.

    Below the quantile ``weak`` of the sizes (by default the smaller half) a voxel is only ``picked``, from there on
    ``weak``; from the quantile ``strong`` on (by default the largest tenth) it ``raises`` or ``lowers`` the median by
    its sign. Voxels of equal size are ``picked``.

    Raises
    ------
    ValueError
        Unless ``0 < weak < strong < 1``.
    """
    if not 0 < weak < strong < 1:
        raise ValueError(f"quantiles of attribution must rise within 0 and 1, found weak {weak} and strong {strong}")
    size = attribution.abs().numpy()
    if not len(size):
        return torch.zeros(0, dtype=torch.int64)
    low, high = np.quantile(size, [weak, strong])
    classes = np.full(len(size), CLASSES["picked"])
    classes[size > low] = CLASSES["weak"]
    most = (size >= high) & (size > low)
    classes[most] = np.where(attribution.numpy()[most] > 0, CLASSES["raises"], CLASSES["lowers"])
    return torch.from_numpy(classes)


def label_map(scan: VirtualScan, explained: Explained) -> np.ndarray:
    """Classes of the picked voxels on the scan's own grid, uint8 of the shape of its file; its affine is the file's.

    A picked voxel of the view is drawn as the file's voxels whose centres lie in it; as the one nearest to its centre
    where there is none, as the view is finer than the file. Where several meet in one, the larger attribution shows.

    Raises
    ------
    ValueError
        If the map would take more than ``MOST_BYTES``.
    """
    labels = _empty(scan, np.uint8, "a label map")
    order = explained.attribution.abs().argsort(stable=True)  # what is drawn later stays
    places, row = source_voxels(scan, explained.voxels[order].numpy())
    classes = attribution_classes(explained.attribution)[order].numpy().astype(np.uint8)
    labels[tuple(places.T)] = classes[row]
    return labels


def attribution_map(scan: VirtualScan, explained: Explained) -> np.ndarray:
    """Signed attributions on the scan's own grid, float32 of the shape of its file; its affine is the file's.

    The attribution of a picked voxel of the view is dealt in equal parts to the file's voxels that :func:`label_map`
    draws it as, and added up where several meet. So the map's sum is that of the attributions, except for voxels of the
    view that lie outside the file (padding). A voxel that was not picked is 0.

    Raises
    ------
    ValueError
        If the map would take more than ``MOST_BYTES``.
    """
    values = _empty(scan, np.float32, "a map of attributions")
    places, row = source_voxels(scan, explained.voxels.numpy())
    parts = np.bincount(row, minlength=len(explained.voxels))
    once, which = np.unique(places, axis=0, return_inverse=True)
    dealt = explained.attribution.numpy()[row] / parts[row]
    values[tuple(once.T)] = np.bincount(which.ravel(), weights=dealt, minlength=len(once))
    return values


def _empty(scan: VirtualScan, dtype: type[np.generic], what: str) -> np.ndarray:
    shape = scan.volumes[0].shape
    if np.prod(shape, dtype=float) * np.dtype(dtype).itemsize > MOST_BYTES:
        raise ValueError(f"{scan.subject}: {what} of {shape} voxels would take more than {MOST_BYTES} bytes")
    return np.zeros(shape, dtype)


def source_voxels(scan: VirtualScan, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The file's voxels that voxels of the view cover.

    Parameters
    ----------
    scan
        The view.
    voxels
        int64 ``(N, 3)``.

    Returns
    -------
    places, row
        int64 ``(M, 3)`` and ``(M,)``: voxels of the file, and which of ``voxels`` each belongs to, rising. Voxels that
        lie outside the file are left out.
    """
    shape = np.array(scan.volumes[0].shape)
    linear, shift = scan.to_source[:3, :3], scan.to_source[:3, 3]
    back = np.linalg.inv(scan.to_source)
    reach = np.abs(linear).sum(axis=1) / 2  # of the box around a voxel of the view, in the file's voxels
    counts = np.floor(2 * reach + 1e-6).astype(np.int64) + 1
    offsets = np.stack(np.meshgrid(*(np.arange(n) for n in counts), indexing="ij"), axis=-1).reshape(-1, 3)
    places, rows = [], []
    for start in range(0, len(voxels), max(1, CHUNK // len(offsets))):
        part = voxels[start : start + max(1, CHUNK // len(offsets))]
        centres = part @ linear.T + shift
        tried = np.ceil(centres - reach - 1e-6).astype(np.int64)[:, None] + offsets  # (n, K, 3)
        # Half open, so that a voxel of the file between two of the view belongs to one of them.
        seen = np.floor(tried @ back[:3, :3].T + back[:3, 3] + 0.5 + 1e-6) == part[:, None]
        covered = seen.all(-1)
        nearest = np.floor(centres + 0.5 + 1e-6).astype(np.int64)
        tried, covered = np.append(tried, nearest[:, None], 1), np.append(covered, ~covered.any(1, keepdims=True), 1)
        covered &= ((tried >= 0) & (tried < shape)).all(-1)
        row, which = np.nonzero(covered)
        places.append(tried[row, which])
        rows.append(row + start)
    return np.concatenate([np.zeros((0, 3), np.int64), *places]), np.concatenate([np.zeros(0, np.int64), *rows])

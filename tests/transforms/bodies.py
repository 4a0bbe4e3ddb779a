"""Scans of one body of blobs that lies differently in each, and what sees them alike."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from cpic_monai.transforms import AlignToTemplated
from cpic_monai.transforms.registration import CoarseImage

#: Centres (mm from the body's middle), widths (mm) and heights of the blobs: no symmetry.
CENTRES = np.array([[0, 0, 0], [16, 6, -8], [-14, 10, 8], [4, -18, 12], [-6, -6, -18]], float)
WIDTHS, HEIGHTS = np.array([18, 7, 6, 8, 6.0]), np.array([1.0, 1.5, 2.0, 1.2, 1.8])
VIEW = (24, 24, 24)


def body(points):
    """Intensity at (..., 3) mm of the body's own space; 0 far away."""
    squared = ((points[..., None, :] - CENTRES) ** 2).sum(-1)
    return (HEIGHTS * np.exp(-squared / (2 * WIDTHS**2))).sum(-1).astype(np.float32)


def moved(turn=(0, 0, 0), scale=(1, 1, 1), shear=0.0, shift=(0, 0, 0)):
    """Body to world: degrees about R, A, S, then scales and a shear, then mm."""
    linear = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(turn)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        linear = step @ linear
    out = np.eye(4)
    out[:3, :3] = linear @ np.diag(scale) @ np.array([[1, shear, 0], [0, 1, 0], [0, 0, 1]])
    out[:3, 3] = shift
    return out


def to(matrix, points):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def picture(shape, affine, place):
    """A scan on a grid (voxel to world) of a body that lies at ``place`` (body to world)."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return body(to(np.linalg.inv(place) @ affine, voxels.astype(float)))


def coarse(place, middle=(0, 0, 0)):
    """Voxels of 4 mm around a point of the world."""
    shape = (28, 30, 26)
    origin = np.array(middle, float) - 4 * (np.array(shape) - 1) / 2
    image = CoarseImage(np.empty(0), origin, 4.0)
    return CoarseImage(picture(shape, image.affine, place), origin, 4.0)


PLACES = {
    "still": moved(),
    "turned": moved(turn=(4, -6, 8), shift=(60, -20, 33)),
    "larger": moved(scale=(1.12, 1.05, 1.1), shear=0.04, shift=(-45, 12, 8)),
    "flipped": moved(turn=(-5, 3, -6), scale=(0.93, 0.96, 0.92), shift=(8, 70, -50)),
}


def write_scans(folder):
    """Items of NIfTI scans: their voxels' sizes, the world's origin and one orientation differ."""
    items = []
    for n, (name, place) in enumerate(PLACES.items()):
        size = np.array([2.0, 2.5, 3.0]) * (1 + 0.1 * n)
        shape = np.ceil(100 / size).astype(int)
        affine = np.diag([*size, 1.0])
        if name == "flipped":
            affine[:3, :3] = np.array([[0, -size[1], 0], [size[0], 0, 0], [0, 0, -size[2]]])
        affine[:3, 3] = place[:3, 3] - affine[:3, :3] @ ((shape - 1) / 2)
        nib.save(nib.Nifti1Image(picture(shape, affine, place), affine), folder / f"{name}.nii")
        items.append({"image": str(folder / f"{name}.nii"), "subject": name})
    return items


def aligner(template, **settings):
    given = {"axcodes": "SPL", "spacing": 6.0, **settings}
    return AlignToTemplated("image", str(template), VIEW, **given)

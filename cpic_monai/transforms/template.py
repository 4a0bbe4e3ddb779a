"""A template: the mean of a cohort's scans after they have been aligned to it, at a coarse resolution."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import affine_transform
from tqdm import tqdm

from cpic_monai.atomic import replacing
from cpic_monai.transforms.by_value import feed
from cpic_monai.transforms.registration import CoarseImage, register
from cpic_monai.transforms.virtual_scan import VirtualScan
from cpic_monai.volumes import CachedVolume, pooled_volume

logger = logging.getLogger(__name__)
#: Begins the description in the header of a template that was made here.
MARK = "template of "


def coarse_image(
    volume: CachedVolume, spacing: float, intensity: Any = None, padding_value: float = 0.0
) -> CoarseImage:
    """A scan on an axis-aligned grid of the world, from means over boxes of about ``spacing`` mm.

    Parameters
    ----------
    volume
        Read once, from end to end (from its pyramid where it has one).
    spacing
        In mm.
    intensity, padding_value
        As for :class:`~cpic_monai.transforms.VirtualScan`; background must come out as 0.
    """
    size = np.linalg.norm(volume.affine[:3, :3], axis=0)
    factors = np.clip(np.round(spacing / size), 1, volume.shape).astype(int)
    pooled = pooled_volume(volume, factors.tolist())
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (np.array(volume.shape) - 1)
    world = corners @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    low, high = world.min(0), world.max(0)
    shape = np.maximum(1, np.ceil((high - low) / spacing)).astype(int)
    grid = np.diag([spacing] * 3 + [1.0])
    grid[:3, 3] = (low + high) / 2 - spacing * (shape - 1) / 2
    view = VirtualScan(
        pooled, np.linalg.inv(pooled.affine) @ grid, shape.tolist(), 1, padding_value, intensity, str(volume.path or "")
    )
    return CoarseImage(view.box((0, 0, 0), shape.tolist())[0].numpy(), grid[:3, 3], float(spacing))


def make_template(
    images: Sequence[CoarseImage], kind: str = "affine", region: Any = None, rounds: int = 3
) -> CoarseImage:
    """Mean of the images, aligned to the mean of the round before; the first round only shifts their centres of mass.

    The template keeps the mean place, size and form of the images: each round's mean transform is taken out again.

    Parameters
    ----------
    images
        Of one spacing, from training scans only.
    kind, region
        See :func:`~cpic_monai.transforms.registration.register`.
    rounds
        Rounds of registration after the first mean.
    """
    if not images:
        raise ValueError("no scans to make a template of")
    spacing = images[0].spacing
    shape = np.median([image.values.shape for image in images], axis=0).astype(int)
    origin = -spacing * (shape - 1) / 2  # the template's own world: its centre of mass' image centre is 0
    middle = np.mean([image.centre_of_mass - image.middle for image in images], 0)
    places = [_shift(image.centre_of_mass - middle) for image in images]
    template = CoarseImage(_mean(images, places, shape, origin), origin, spacing)
    for turn in range(rounds if kind != "translation" else 0):
        bar = tqdm(images, desc=f"template, round {turn + 1} of {rounds}", unit="scan", leave=False)
        places = [register(template, image, kind, region) for image in bar]
        # Affine maps average as matrices near the identity; without this the template would drift and shrink.
        mean = np.linalg.inv(np.mean([_relative(p) for p in places], axis=0))
        places = [p @ mean for p in places]
        template = CoarseImage(_mean(images, places, shape, origin), origin, spacing)
    return template


def save_template(template: CoarseImage, path: str | os.PathLike[str], made_from: str = "") -> Path:
    """Write a NIfTI file, to a temporary name first; ``made_from``, of at most 79 letters, goes into its header."""
    image = nib.Nifti1Image(template.values.astype(np.float32), template.affine)
    image.header["descrip"] = made_from
    with replacing(path) as temporary:
        nib.save(image, temporary)
    return Path(path)


def made_from(path: str | os.PathLike[str]) -> str:
    """What :func:`save_template` was told; empty for other files."""
    words = bytes(nib.Nifti1Image.from_filename(str(path)).header["descrip"]).rstrip(b"\0").decode("ascii", "replace")
    return words if words.startswith(MARK) else ""


def load_template(path: str | os.PathLike[str]) -> CoarseImage:
    """Read what :func:`save_template` wrote.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is none, or its voxels are no cubes along the world's axes.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{path}: no template there. Training makes it (configs/align.json); for evaluation and inference set "
            "`template` to the file that training wrote beside its checkpoint."
        )
    image = nib.Nifti1Image.from_filename(str(path))
    spacing = float(image.affine[0, 0])
    if spacing <= 0 or not np.allclose(image.affine[:3, :3], spacing * np.eye(3), atol=1e-4 * abs(spacing) + 1e-9):
        raise ValueError(f"{path}: a template has cubic voxels along R, A and S, found affine {image.affine.tolist()}")
    return CoarseImage(np.asarray(image.dataobj, np.float32), image.affine[:3, 3].astype(np.float64), spacing)


def ensure_template(
    path: str | os.PathLike[str],
    volume_of: Callable[[int], CachedVolume],
    names: Sequence[str],
    *,
    spacing: float = 8.0,
    intensity: Any = None,
    padding_value: float = 0.0,
    kind: str = "affine",
    region: Any = None,
    rounds: int = 3,
    most: int = 40,
) -> Path:
    """Make the template of a cohort's training scans unless the file is there already.

    A file that was made here of other scans (another fold, or files that have changed) or with other settings is made
    anew: it may show scans that are held out now. A file that says nothing of how it was made stays.

    Parameters
    ----------
    volume_of
        Opens the training scan of that number; of more than ``most`` scans it is asked for evenly spread ones.
    names
        Of the scans.
    """
    path = Path(path)
    there = made_from(path) if path.exists() else None
    if there == "":
        return path
    settings = {"spacing": spacing, "padding_value": padding_value, "kind": kind, "region": region, "rounds": rounds}
    scans = [volume_of(number) for number in range(0, len(names), max(1, -(-len(names) // most)))]
    facts = hashlib.sha256()
    feed(facts, [settings, intensity, most, list(names), [scan.identity for scan in scans]])
    digest = MARK + facts.hexdigest()[:32]
    if there == digest:
        return path
    if there is not None:
        logger.warning(f"{path} was made of other scans or with other settings: it is made anew")
    chosen = tqdm(scans, desc="read scans for the template", unit="scan", leave=False)
    images = [coarse_image(volume, spacing, intensity, padding_value) for volume in chosen]
    save_template(make_template(images, kind, region, rounds), path, digest)
    logger.info(f"made a template of {len(images)} training scans: {path}")
    return path


def _mean(images: Sequence[CoarseImage], places: Sequence[np.ndarray], shape: np.ndarray, origin: np.ndarray) -> Any:
    grid = CoarseImage(np.empty(0), origin, images[0].spacing).affine
    total = np.zeros(shape)
    for image, place in zip(images, places, strict=True):
        to_voxel = np.linalg.inv(image.affine) @ place @ grid
        total += affine_transform(image.values, to_voxel[:3, :3], to_voxel[:3, 3], shape.tolist(), order=1)
    return (total / len(images)).astype(np.float32)


def _shift(offset: np.ndarray) -> np.ndarray:
    out = np.eye(4)
    out[:3, 3] = offset
    return out


def _relative(place: np.ndarray) -> np.ndarray:
    """The linear part only: where scans lie in their scanners has no mean that would matter."""
    out = place.copy()
    out[:3, 3] = 0
    return out

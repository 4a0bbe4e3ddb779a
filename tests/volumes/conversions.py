"""What tests of conversions share: files to convert, stores read whole, the script."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nibabel
import numpy as np
from stores import AFFINE

from cpic_monai.volumes import open_volume


def save(path: Path, array: np.ndarray, slope: tuple[float, float] | None = None) -> Path:
    """Write a NIfTI file, its stored values scaled by ``slope`` (and intercept)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, AFFINE)
    if slope:
        image.header.set_slope_inter(*slope)
    nibabel.save(image, path)
    return path


def whole(place: str | Path, **options) -> np.ndarray:
    """All voxels of a scan."""
    volume = open_volume(place, **options)
    return volume.read((0, 0, 0), volume.shape)


def script():
    """scripts/convert.py as a module."""
    spec = importlib.util.spec_from_file_location("convert", Path(__file__).parents[2] / "scripts" / "convert.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""One door to every format, and the check that files opened together are channels of one scan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpic_monai.volumes.array import ArrayVolume
from cpic_monai.volumes.cache import BlockCache
from cpic_monai.volumes.chunked import ChunkedVolume
from cpic_monai.volumes.dicom import DicomVolume
from cpic_monai.volumes.dicom_header import DICOM_SUFFIXES
from cpic_monai.volumes.itk_image import open_itk
from cpic_monai.volumes.nifti import open_nifti
from cpic_monai.volumes.protocol import Volume, VolumeError
from cpic_monai.volumes.store_access import DEFAULT_CACHE_BYTES, is_store, local_path

FORMATS = (
    "a DICOM folder, .dcm, .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, an OME-Zarr store (.zarr or a URL), or an array"
)


def open_volume(
    source: Any,
    *,
    cache: BlockCache | None = None,
    affine: np.ndarray | None = None,
    padding_value: float | None = -1024.0,
    resample_gaps: bool = False,
    allow_tilt: bool = False,
    series_uid: str | None = None,
    store_cache_bytes: int = DEFAULT_CACHE_BYTES,
    storage: Mapping[str, Any] | None = None,
) -> Volume:
    """Open a scan by its header.

    Parameters
    ----------
    source
        A path (or ``file://`` URL), the ``http(s)://``, ``s3://`` or ``gs://`` URL of an OME-Zarr store, an (i, j, k)
        array or tensor, or a Volume (returned as it is).
    cache
        Holds files that can only be decoded as a whole; default is the process's shared cache.
    affine
        For arrays: (4, 4) voxel to RAS+ mm.
    padding_value, resample_gaps, allow_tilt, series_uid
        For DICOM: see :class:`~cpic_monai.volumes.dicom.DicomVolume`.
    store_cache_bytes, storage
        For stores: ``cache_bytes`` and ``storage`` of :class:`~cpic_monai.volumes.chunked.ChunkedVolume`.

    Raises
    ------
    FileNotFoundError
        If there is no such path.
    VolumeError
        If the format is not known, or the file is not one 3-D scan.
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        return ArrayVolume(source, affine)
    if not isinstance(source, str | os.PathLike):
        if isinstance(source, Volume):
            return source
        raise VolumeError(f"a scan of type {type(source).__name__} cannot be opened; expected {FORMATS}.")
    source = local_path(os.fspath(source))
    if is_store(source):
        return ChunkedVolume(source, cache_bytes=store_cache_bytes, storage=storage)
    path = str(Path(source))
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file or folder; check the path in the cohort's table.")
    name = path.lower()
    if os.path.isdir(path) or name.endswith(DICOM_SUFFIXES):
        return DicomVolume(path, padding_value, resample_gaps, allow_tilt, series_uid)
    if name.endswith((".nii", ".nii.gz")):
        return open_nifti(path, cache)
    if name.endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
        return open_itk(path, cache)
    raise VolumeError(f"{path}: unknown format; expected {FORMATS}.")


def check_same_grid(volumes: Sequence[Volume], subject: str) -> None:
    """Raise ValueError where the channels of a scan differ in shape or lie elsewhere (by 0.001 or more)."""
    first = volumes[0]
    for volume in volumes[1:]:
        if volume.shape != first.shape or not np.allclose(volume.affine, first.affine, atol=1e-3):
            raise ValueError(
                f"{subject}: channels must share one grid, but {first.path} has shape {first.shape}, affine "
                f"{first.affine.round(4).tolist()} and {volume.path} shape {volume.shape}, affine "
                f"{volume.affine.round(4).tolist()}; register and resample them onto one grid first."
            )

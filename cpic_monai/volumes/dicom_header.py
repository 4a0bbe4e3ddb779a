"""What is read of each DICOM slice's header before any pixel."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from cpic_monai.volumes.protocol import VolumeError

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")

_TAGS = [
    "SOPInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation", "RescaleSlope",
    "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "SliceThickness", "SpacingBetweenSlices", "InstanceNumber", "GantryDetectorTilt",
]  # fmt: skip


@dataclass(frozen=True)
class SliceHeader:
    """One slice: where it lies and how its stored values become physical ones. Lengths in mm, LPS+ axes."""

    path: str
    series_uid: str
    modality: str
    rows: int
    columns: int
    bits: int
    signed: bool
    monochrome1: bool
    slope: float
    intercept: float
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, float] | None
    thickness: float | None
    instance: int | None
    tilt: float | None

    @property
    def file(self) -> str:
        """The file's own name."""
        return os.path.basename(self.path)

    @property
    def number_in_name(self) -> int | None:
        """The last number in the file's name: OSIC names slices 1.dcm, 2.dcm, ... 10.dcm."""
        digits = re.findall(r"\d+", os.path.splitext(self.file)[0])
        return int(digits[-1]) if digits else None


def _number(header: pydicom.Dataset, keyword: str, path: str) -> float | None:
    value = header.get(keyword)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise VolumeError(f"{path}: {keyword} is {value!r}, not a number; correct or remove the tag.") from error


def _numbers(header: pydicom.Dataset, keyword: str, count: int, path: str) -> tuple[float, ...] | None:
    value = header.get(keyword)
    if value is None or len(value) == 0:
        return None
    numbers = tuple(float(v) for v in value)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise VolumeError(f"{path}: {keyword} is {numbers}, not {count} finite numbers; correct or remove the tag.")
    return numbers


def read_slice_header(path: str) -> SliceHeader:
    """Read one slice's header; its pixels stay on disk.

    Raises
    ------
    VolumeError
        If the file is no DICOM image of one grey plane.
    """
    try:
        header: Any = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
    except (InvalidDicomError, EOFError) as error:
        raise VolumeError(f"{path}: not a readable DICOM file ({error}); remove it or copy it anew.") from error
    rows, columns = header.get("Rows"), header.get("Columns")
    if not rows or not columns:
        raise VolumeError(f"{path}: DICOM file without an image (no Rows or Columns); move it out of the folder.")
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise VolumeError(
            f"{path}: multi-frame DICOM ({header.NumberOfFrames} frames) is not read; convert it with dcm2niix to .nii."
        )
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise VolumeError(f"{path}: {header.SamplesPerPixel} samples a pixel (colour); a scan has one.")
    spacing = _numbers(header, "PixelSpacing", 2, path) or _numbers(header, "ImagerPixelSpacing", 2, path)
    slope, intercept = _number(header, "RescaleSlope", path), _number(header, "RescaleIntercept", path)
    thickness = _number(header, "SpacingBetweenSlices", path) or _number(header, "SliceThickness", path)
    instance = _number(header, "InstanceNumber", path)
    return SliceHeader(
        path=path,
        series_uid=str(header.get("SeriesInstanceUID") or ""),
        modality=str(header.get("Modality") or ""),
        rows=int(rows),
        columns=int(columns),
        bits=int(header.get("BitsStored") or header.get("BitsAllocated") or 16),
        signed=bool(header.get("PixelRepresentation") or 0),
        monochrome1=header.get("PhotometricInterpretation") == "MONOCHROME1",
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        position=_numbers(header, "ImagePositionPatient", 3, path),
        orientation=_numbers(header, "ImageOrientationPatient", 6, path),
        pixel_spacing=None if spacing is None else (spacing[0], spacing[1]),
        thickness=abs(thickness) if thickness else None,
        instance=None if instance is None else int(instance),
        tilt=_number(header, "GantryDetectorTilt", path),
    )


def is_dicom(path: str) -> bool:
    """Whether a file is DICOM: by its ending (then it is not opened), else by its magic bytes."""
    if path.lower().endswith(DICOM_SUFFIXES):
        return True
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def dicom_files(folder: str) -> list[str]:
    """DICOM files directly in a folder, by their ending or their magic bytes; DICOMDIR is an index, not a slice.

    Raises
    ------
    VolumeError
        If there is none.
    """
    names = sorted(name for name in os.listdir(folder) if not name.startswith(".") and name.upper() != "DICOMDIR")
    paths = [os.path.join(folder, name) for name in names]
    found = [path for path in paths if os.path.isfile(path) and is_dicom(path)]
    if not found:
        inner = [p for p in paths if os.path.isdir(p)]
        hint = f" Its subfolders are {[os.path.basename(p) for p in inner[:5]]}: name one." if inner else ""
        raise VolumeError(f"{folder}: no DICOM file among its {len(paths)} entries.{hint}")
    return found


def in_order(slices: list[SliceHeader], folder: str) -> list[SliceHeader]:
    """Order slices that lack positions: by InstanceNumber, else by the number in the file name.

    Raises
    ------
    VolumeError
        If neither is there and distinct for every slice.
    """
    for tag, keys in (("InstanceNumber", [s.instance for s in slices]),
                      ("the number in the file name", [s.number_in_name for s in slices])):  # fmt: skip
        if None not in keys and len(set(keys)) == len(keys):
            if len(slices) > 1:
                warnings.warn(
                    f"{folder}: ImagePositionPatient is missing in some slices; they are ordered by {tag} and taken "
                    "as evenly spaced by their slice thickness.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return [s for _, s in sorted(zip(keys, slices, strict=True), key=lambda pair: pair[0] or 0)]
    raise VolumeError(
        f"{folder}: no slice order: ImagePositionPatient is missing, and neither InstanceNumber nor the numbers in "
        "the file names tell the slices apart; rename the files 1.dcm, 2.dcm, ... from first to last."
    )

"""Writes a phantom scan as a DICOM CT series and its fibrosis mask as NIfTI on the same grid."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

__all__ = ["Geometry", "write_mask", "write_series"]


@dataclass(frozen=True)
class Geometry:
    """An axial grid about the origin of patient space.

    Parameters
    ----------
    shape
        (slices, rows, columns).
    spacing
        Distance in mm between slices, rows and columns.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centres of slices (feet to head), rows (front to back) and columns (right to left) in mm, DICOM's LPS."""
        return tuple((np.arange(n) - (n - 1) / 2) * d for n, d in zip(self.shape, self.spacing, strict=True))  # type: ignore[return-value]

    @property
    def affine(self) -> np.ndarray:
        """Voxel (column, row, slice) to world, RAS+ mm, (4, 4): as a reader of the DICOM series gives it."""
        z, y, x = self.axes()
        affine = np.diag([-self.spacing[2], -self.spacing[1], self.spacing[0], 1.0])
        affine[:3, 3] = [-x[0], -y[0], z[0]]
        return affine


def _uid(*parts: object) -> UID:
    """A UID that depends on nothing but its parts (2.25 root: a UUID as an integer, DICOM PS3.5 B.2)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")


def _decimal(value: float) -> str:
    """A DS value: at most 16 characters."""
    return f"{value:.10g}"[:16]


def write_series(folder: Path, hu: np.ndarray, geometry: Geometry, patient: str, sex: str, age: int, key: str) -> None:
    """Write ``1.dcm`` (head) to ``<n>.dcm`` (feet).

    Parameters
    ----------
    folder
        Made if missing.
    hu
        (slices, rows, columns) int16 HU, slices from feet to head.
    geometry
        The grid of `hu`.
    patient, sex, age
        Header values.
    key
        What the UIDs are made of; the same key gives the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    z, y, x = geometry.axes()
    slices = len(z)
    ds = _header(geometry, patient, sex, age, key)
    for number in range(1, slices + 1):
        k = slices - number
        instance = _uid(key, patient, "instance", number)
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = instance
        ds.InstanceNumber = number
        ds.ImagePositionPatient = [_decimal(x[0]), _decimal(y[0]), _decimal(z[k])]
        ds.SliceLocation = _decimal(z[k])
        ds.PixelData = (hu[k].astype(np.int16) + np.int16(1024)).astype("<i2").tobytes()
        ds["PixelData"].VR = "OW"
        ds.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def _header(geometry: Geometry, patient: str, sex: str, age: int, key: str) -> FileDataset:
    """What all slices of a series share."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("cpic_monai")
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    ds.SOPClassUID = CTImageStorage
    ds.StudyInstanceUID, ds.SeriesInstanceUID = _uid(key, patient, "study"), _uid(key, patient, "series")
    ds.FrameOfReferenceUID = _uid(key, patient, "frame")
    ds.Modality, ds.Manufacturer, ds.ImageType = "CT", "cpic_monai phantom", ["DERIVED", "PRIMARY", "AXIAL"]
    ds.PatientID = ds.PatientName = patient
    ds.PatientSex, ds.PatientAge = sex[0], f"{age:03d}Y"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200101", "000000", "1", ""
    ds.ReferringPhysicianName = ds.PatientBirthDate = ds.PositionReferenceIndicator = ""
    ds.SeriesNumber, ds.PatientPosition = 1, "HFS"
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [_decimal(geometry.spacing[1]), _decimal(geometry.spacing[2])]
    ds.SliceThickness = _decimal(geometry.spacing[0])
    ds.KVP, ds.BodyPartExamined, ds.ConvolutionKernel = "120", "CHEST", "PHANTOM"
    ds.Rows, ds.Columns = geometry.shape[1:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"
    ds.WindowCenter, ds.WindowWidth = "-500", "1500"
    return ds


def write_mask(path: Path, mask: np.ndarray, geometry: Geometry) -> None:
    """Write a uint8 mask (slices, rows, columns; feet to head) as NIfTI with the series' affine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.ascontiguousarray(mask.transpose(2, 1, 0)), geometry.affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)

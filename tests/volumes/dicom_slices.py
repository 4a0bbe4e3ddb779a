"""Writes small DICOM slices with pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

SERIES = "1.2.826.0.1.3680043.8.498.1"


def write_slice(path: Path, stored: np.ndarray, **tags: Any) -> None:
    """Write ``stored`` (rows, columns) as one CT slice; a tag given as None is left out."""
    explicit = tags.pop("explicit", True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    defaults: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": SERIES,
        "Modality": "CT",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": int(tags.get("BitsStored", 16)) - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
        "PixelSpacing": [0.5, 0.75],
        "SliceThickness": 2,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    }
    for tag, value in (defaults | tags).items():
        if value is not None:
            setattr(header, tag, value)
    header.PixelData = stored.tobytes()
    header.save_as(path)

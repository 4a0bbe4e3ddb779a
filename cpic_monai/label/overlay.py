"""Files of label maps that viewers overlay on a scan."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np

from cpic_monai.atomic import replacing

__all__ = ["SUFFIXES", "write_label_map"]

SUFFIXES = (".nii.gz", ".nii", ".nrrd")


def write_label_map(path: str | os.PathLike[str], labels: np.ndarray, affine: np.ndarray) -> Path:
    """Write a label map under a temporary name, then rename it.

    Parameters
    ----------
    path
        Ends in one of ``SUFFIXES``; 3D Slicer asks for NRRD.
    labels
        uint8 ``(i, j, k)``.
    affine
        (4, 4) voxel to RAS+ mm, of the scan that the label map lies on.

    Raises
    ------
    ValueError
        For another suffix, or a sheared grid (a tilted gantry) as NRRD, which ITK cannot write.
    """
    path = Path(path)
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise ValueError(f"{path.name}: label maps are written as {', '.join(SUFFIXES)}; change `result_extension`")
    with replacing(path) as temporary:
        if suffix == ".nrrd":
            _write_nrrd(temporary, labels, affine)
        else:
            image = nibabel.Nifti1Image(labels, affine)
            image.header.set_xyzt_units("mm")
            image.set_sform(affine, code="scanner")
            if _orthogonal(affine):
                image.set_qform(affine, code="scanner")
            nibabel.save(image, temporary)
    return path


def _orthogonal(affine: np.ndarray) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(axes.T @ axes, np.eye(3), atol=1e-4))


def _write_nrrd(path: Path, labels: np.ndarray, affine: np.ndarray) -> None:
    import itk  # slow to import, and only needed here

    if not _orthogonal(affine):
        raise ValueError(
            f"the scan's axes are not at right angles (affine {np.round(affine, 4).tolist()}): NRRD by ITK cannot hold "
            "that; ask for `result_extension` .nii.gz"
        )
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = itk.image_from_array(np.ascontiguousarray(labels.T))  # ITK's arrays run (k, j, i)
    image.SetSpacing(spacing)
    image.SetOrigin(lps[:3, 3])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3] / spacing)))
    itk.imwrite(image, str(path), True)

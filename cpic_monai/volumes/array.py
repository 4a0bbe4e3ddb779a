"""Arrays and tensors in memory as volumes."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import torch

from cpic_monai.volumes.protocol import MappedVolume, VolumeError


class ArrayVolume(MappedVolume):
    """A (i, j, k) NumPy array or torch tensor seen as a volume; nothing is copied.

    Parameters
    ----------
    array
        3-D real array, tensor or MetaTensor on the CPU. Booleans are read as uint8, half floats as float32.
    affine
        (4, 4) voxel to RAS+ mm. Default: the MetaTensor's own, else the identity (1 mm voxels).

    Raises
    ------
    VolumeError
        If the array is not 3-D or not real.
    """

    def __init__(self, array: Any, affine: np.ndarray | None = None) -> None:
        if affine is None:
            affine = np.asarray(array.affine) if hasattr(array, "affine") else np.eye(4)
        if isinstance(array, torch.Tensor):
            plain = array.detach().as_subclass(torch.Tensor).cpu()
            array = (plain.float() if plain.dtype in (torch.bfloat16, torch.float16) else plain).numpy()
        values = np.asarray(array)
        if values.ndim != 3:
            raise VolumeError(
                f"array of shape {values.shape}: a volume has three axes (i, j, k); pass channels one by one as a list."
            )
        if values.dtype == np.bool_:
            values = values.view(np.uint8)
        if values.dtype.kind not in "iuf":
            raise VolumeError(
                f"array of type {values.dtype}: only real numbers can be read as a scan; convert it first."
            )
        dtype = np.dtype(np.float32) if values.dtype == np.float16 else values.dtype
        # A new name for each object: an array has no file whose time of change could tell two contents apart.
        super().__init__(values.shape, affine, dtype, None, f"array:{uuid.uuid4().hex}")
        self._values = values

    def mapped(self) -> np.ndarray:
        """The array itself."""
        return self._values

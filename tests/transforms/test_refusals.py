"""Lazy chains put together wrongly are refused with what to do."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, CropForegroundd, Flipd, OneOf, ScaleIntensityRanged

from cpic_monai.transforms import LazyCompose, LoadVolumed, SamplePatchesd, VirtualScand


class FixedVoxels:
    """The same voxels for everyone."""

    def __init__(self, voxels):
        self._voxels = torch.as_tensor(voxels)

    def voxels(self, subject):
        return self._voxels


@pytest.fixture
def path(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), tmp_path / "scan.nii")
    return str(tmp_path / "scan.nii")


def virtual(path, *transforms):
    chain = LazyCompose([LoadVolumed("image"), *transforms, VirtualScand("image")])
    return chain({"image": path, "subject": "ID1"})["image"]


def test_transforms_that_need_voxels_are_refused(path):
    for transform, name in (
        (ScaleIntensityRanged("image", 0, 1, 0, 1), "ScaleIntensityRanged"),
        (CropForegroundd("image", "image"), "CropForegroundd"),
        (OneOf([Flipd("image", 0), Flipd("image", 1)]), "OneOf"),
    ):
        with pytest.raises(TypeError, match=name):
            virtual(path, transform)
    chain = Compose([LoadVolumed("image"), Flipd("image", 0), VirtualScand("image")])
    with pytest.raises(RuntimeError) as caught:
        chain({"image": path, "subject": "ID1"})
    assert "LazyCompose" in str(caught.value.__cause__)


def test_wrong_order_of_our_own(path):
    with pytest.raises(KeyError, match="put LoadVolumed before"):
        VirtualScand("image")({"image": torch.zeros(1, 2, 2, 2)})
    sample = SamplePatchesd("image", FixedVoxels([[0, 0, 0]]), 3)
    with pytest.raises(TypeError, match="put VirtualScand before"):
        sample({"image": path, "subject": "ID1"})
    with pytest.raises(KeyError, match="subject"):
        sample({"image": virtual(path)})
    with pytest.raises(KeyError, match="second"):
        LoadVolumed(["image", "second"])({"image": path})
    assert "second" not in LoadVolumed(["image", "second"], allow_missing_keys=True)({"image": path})

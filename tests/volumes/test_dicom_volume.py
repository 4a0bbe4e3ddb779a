"""DICOM series: values and affines against MONAI's reader, order, and what is read."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from monai.transforms import LoadImage

from cpic_monai.volumes import BlockCache, CachedVolume, VolumeError, open_volume


def whole(volume):
    return volume.read((0, 0, 0), volume.shape)


def like_monai(folder, volume):
    image = LoadImage(image_only=True, reader="ITKReader")(str(folder))
    assert tuple(image.shape) == volume.shape
    np.testing.assert_allclose(volume.affine, image.affine.numpy(), atol=1e-4)
    np.testing.assert_allclose(whole(volume), image.numpy(), atol=1e-3)


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize(("dtype", "low", "inter"), [("u2", 0, -1024), ("i2", -1000, 0)])
def test_values_and_affine_are_those_of_monai(write_series, explicit, dtype, low, inter):
    folder, stored = write_series(explicit=explicit, dtype=dtype, low=low, RescaleIntercept=inter, BitsStored=16)
    volume = open_volume(folder)
    like_monai(folder, volume)
    assert np.array_equal(whole(volume), stored.astype(int).transpose(2, 1, 0) + inter)
    assert volume.dtype == (np.int32 if dtype == "u2" else np.int16)
    assert volume.spacing == pytest.approx((0.75, 0.5, 2.0))


def test_affine_in_numbers(write_series):
    folder, _ = write_series()
    expected = [[-0.75, 0, 0, 10], [0, -0.5, 0, -20], [0, 0, 2, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(open_volume(folder).affine, expected, atol=1e-12)


def test_slices_that_descend_in_the_files_ascend_along_the_normal(write_series):
    folder, stored = write_series(z=lambda k: -2.0 * k)
    volume = open_volume(folder)
    assert np.array_equal(whole(volume), stored[::-1].transpose(2, 1, 0))
    assert volume.affine[2, 3] == -8.0


def test_coronal_orientation(write_series):
    folder, _ = write_series(
        each=lambda k: {"ImagePositionPatient": [5.0, 3.0 * k, 7.0]}, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]
    )
    like_monai(folder, open_volume(folder))


def test_twelve_bit_unsigned_ct_is_int16(write_series):
    folder, stored = write_series(BitsStored=12, RescaleIntercept=-1024)
    volume = open_volume(folder)
    assert volume.dtype == np.int16
    assert np.array_equal(whole(volume), stored.astype(int).transpose(2, 1, 0) - 1024)


def test_each_slice_has_its_own_rescale(write_series):
    folder, stored = write_series(each=lambda k: {"RescaleSlope": 1 + 0.25 * k, "RescaleIntercept": 10 * k})
    k = np.arange(5)
    volume = open_volume(folder)
    assert volume.dtype == np.float32
    np.testing.assert_allclose(whole(volume), stored.transpose(2, 1, 0) * (1 + 0.25 * k) + 10 * k, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "bits", "top"), [("u2", 12, 4095), ("u2", 16, 65535), ("i2", 16, -1), ("i2", 12, -1)]
)
def test_monochrome1_is_inverted(write_series, dtype, bits, top):
    low, high = (0, 3000) if dtype == "u2" else (-1000, 1000)
    folder, stored = write_series(
        dtype=dtype, BitsStored=bits, PhotometricInterpretation="MONOCHROME1", low=low, high=high, Modality="CR",
        RescaleSlope=2, RescaleIntercept=3,
    )  # fmt: skip
    expected = (top - stored.astype(int).transpose(2, 1, 0)) * 2 + 3
    assert np.array_equal(whole(open_volume(folder)), expected)


def test_padding_of_ct_becomes_air_unless_asked_not_to(write_series):
    folder, stored = write_series(dtype="i2", low=-2000, high=500)
    assert stored.min() < -1024
    assert np.array_equal(whole(open_volume(folder)), np.maximum(stored, -1024).transpose(2, 1, 0))
    assert np.array_equal(whole(open_volume(folder, padding_value=None)), stored.transpose(2, 1, 0))


def test_without_positions_instance_number_orders(write_series):
    folder, stored = write_series(ImagePositionPatient=None)
    with pytest.warns(RuntimeWarning, match="ordered by InstanceNumber"):
        volume = open_volume(folder)
    # InstanceNumber counts down in these files.
    assert np.array_equal(whole(volume), stored[::-1].transpose(2, 1, 0))
    assert volume.spacing[2] == 2.0


def test_without_positions_and_numbers_file_names_order(write_series):
    folder, stored = write_series(
        count=12, name=lambda k: f"{k + 1}.dcm", each=lambda k: {"ImagePositionPatient": None, "InstanceNumber": None}
    )
    with pytest.warns(RuntimeWarning, match="file name"):
        volume = open_volume(folder)
    assert np.array_equal(whole(volume), stored.transpose(2, 1, 0))  # 10 comes after 9, not after 1


def test_without_any_order_is_refused(write_series):
    no_order = {"ImagePositionPatient": None, "InstanceNumber": 1}
    folder, _ = write_series(count=2, each=lambda k: no_order, name="ab".__getitem__)
    with pytest.raises(VolumeError, match="rename the files"):
        open_volume(folder)


def test_only_slices_of_the_box_are_read_and_blocks_are_slices(write_series):
    folder, stored = write_series(count=6)
    volume = open_volume(folder)
    assert volume.bytes_read == 0
    cached = CachedVolume(volume, BlockCache(1 << 20))
    expected = stored.transpose(2, 1, 0)
    assert np.array_equal(cached.read((1, 1, 2), (4, 5, 4)), expected[1:4, 1:5, 2:4])
    assert volume.bytes_read == 2 * 6 * 8 * 2
    cached.read((0, 0, 3), (8, 6, 5))
    assert volume.bytes_read == 3 * 6 * 8 * 2
    assert (cached.cache.hits, cached.cache.misses) == (1, 3)


def test_one_file_is_one_slice(write_series):
    folder, stored = write_series()
    volume = open_volume(folder / "3.dcm")
    assert volume.shape == (8, 6, 1)
    assert np.array_equal(whole(volume)[..., 0], stored[0].T)


def test_broken_pixels_name_the_file(write_series):
    folder, _ = write_series(count=1)
    path = folder / "3.dcm"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(VolumeError, match=r"3\.dcm"):
        whole(open_volume(folder))


def test_folder_without_dicom_and_foreign_files(write_series, tmp_path):
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(VolumeError, match=r"no DICOM file.*inner"):
        open_volume(tmp_path / "empty")
    folder, _ = write_series()
    (folder / "LICENSE").write_text("text")
    (folder / "3.dcm").rename(folder / "no_ending")
    assert open_volume(folder).shape == (8, 6, 5)
    (folder / "broken.dcm").write_text("text")
    with pytest.raises(VolumeError, match=r"broken\.dcm"):
        open_volume(folder)


def test_pickles_by_header(write_series):
    folder, _ = write_series()
    volume = open_volume(folder)
    again = pickle.loads(pickle.dumps(volume))
    assert again.identity == volume.identity
    assert np.array_equal(whole(again), whole(volume))


class Slices(torch.utils.data.Dataset):
    """Slice k of a volume, as item k."""

    def __init__(self, volume):
        self.volume = volume

    def __len__(self):
        return self.volume.shape[2]

    def __getitem__(self, k):
        return self.volume.read((0, 0, k), (*self.volume.shape[:2], k + 1))[..., 0]


def test_loader_workers_read_after_the_main_process_has(write_series):
    folder, stored = write_series()
    volume = CachedVolume(open_volume(folder), BlockCache(1 << 20))
    volume.read((0, 0, 0), (8, 6, 1))
    loader = torch.utils.data.DataLoader(Slices(volume), batch_size=None, num_workers=2, timeout=300)
    assert np.array_equal(np.stack(list(loader)), stored.transpose(0, 2, 1))


def test_identity_changes_with_the_files(write_series):
    folder, _ = write_series()
    before = open_volume(folder).identity
    assert open_volume(folder).identity == before
    os.utime(folder / "3.dcm", ns=(1, 1))
    assert open_volume(folder).identity != before
    assert open_volume(folder, padding_value=None).identity != open_volume(folder).identity


@pytest.mark.parametrize("series", ["A0001_philips_64x5mm", "A0002_siemens_30x8mm"])
def test_real_series_are_those_of_monai(real, tmp_path, series):
    folder = tmp_path / series
    folder.mkdir()
    # Ten slices in the middle: the same code as for all, at a tenth of the time.
    for path in sorted((real / "dicom_lung_ct" / series).glob("*.dcm"))[10:20]:
        shutil.copy(path, folder)
    volume = open_volume(folder)
    assert volume.dtype == np.int16
    like_monai(folder, volume)

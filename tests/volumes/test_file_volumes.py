"""NIfTI, NRRD, MetaImage and arrays: values, affines, and what is read."""

import pickle

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage

from cpic_monai.volumes import ArrayVolume, BlockCache, Volume, VolumeError, open_volume
from cpic_monai.volumes.nifti import GzipNiftiStream

AFFINE = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -7], [0, 0, 3, 2.5], [0, 0, 0, 1]])


def values(dtype="i2", shape=(5, 6, 7)):
    return np.random.default_rng(0).integers(0, 120, shape).astype(dtype)


def like_monai(path, volume):
    image = LoadImage(image_only=True)(str(path))
    assert tuple(image.shape) == volume.shape
    np.testing.assert_allclose(volume.affine, image.affine.numpy(), atol=1e-4)
    np.testing.assert_allclose(volume.read((0, 0, 0), volume.shape), image.numpy(), rtol=1e-6, atol=1e-5)
    again = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(again.read((1, 2, 3), (3, 4, 5)), volume.read((1, 2, 3), (3, 4, 5)))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", ">i2"])
def test_nifti(tmp_path, ending, kind, dtype):
    path = tmp_path / f"scan{ending}"
    header = kind.header_class(endianness=">") if dtype == ">i2" else None
    image = kind(values(dtype), AFFINE, header)
    image.set_data_dtype(np.dtype(dtype))
    nib.save(image, path)
    volume = open_volume(path, cache=BlockCache(1 << 20))
    assert isinstance(volume, Volume)
    assert volume.bytes_read == 0
    assert volume.dtype == np.dtype(dtype).newbyteorder("=")
    assert volume.read((0, 1, 2), (2, 3, 4)).dtype == volume.dtype
    assert volume.spacing == pytest.approx((1.5, 2, 3))
    like_monai(path, volume)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_scale_and_trailing_axis(tmp_path, ending):
    path = tmp_path / f"scan{ending}"
    image = nib.Nifti1Image(values("i2", (5, 6, 7, 1)), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, path)
    volume = open_volume(path)
    assert volume.shape == (5, 6, 7)
    assert volume.dtype == np.float32
    np.testing.assert_allclose(volume.read((0, 0, 0), (5, 6, 7)), values() * 0.5 - 3, rtol=1e-6)
    np.testing.assert_array_equal(volume.read((0, 0, 0), (5, 6, 7)), nib.load(path).get_fdata()[..., 0])


def test_nifti_refusals(tmp_path):
    nib.save(nib.Nifti1Image(values("i2", (5, 6, 7, 2)), AFFINE), tmp_path / "four.nii")
    with pytest.raises(VolumeError, match=r"four\.nii: shape \(5, 6, 7, 2\)"):
        open_volume(tmp_path / "four.nii")
    nib.save(nib.Nifti1Image(values(), AFFINE), tmp_path / "cut.nii")
    (tmp_path / "cut.nii").write_bytes((tmp_path / "cut.nii").read_bytes()[:-2])
    with pytest.raises(VolumeError, match="promises"):
        open_volume(tmp_path / "cut.nii")
    nib.save(nib.Nifti1Image(values("c8"), AFFINE), tmp_path / "complex.nii")
    with pytest.raises(VolumeError, match="complex64"):
        open_volume(tmp_path / "complex.nii")
    (tmp_path / "text.nii").write_text("no scan")
    with pytest.raises(VolumeError, match=r"text\.nii"):
        open_volume(tmp_path / "text.nii")


def test_compressed_nifti_is_decoded_once_and_bounded(tmp_path):
    nib.save(nib.Nifti1Image(values(), AFFINE), tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(values(), AFFINE), tmp_path / "b.nii.gz")
    size = 5 * 6 * 7 * 2
    cache = BlockCache(size)
    a, b = (open_volume(tmp_path / f"{n}.nii.gz", cache=cache) for n in "ab")
    assert cache.nbytes == 0
    a.read((0, 0, 0), (1, 1, 1))
    a.read((1, 1, 1), (2, 2, 2))
    assert (a.bytes_read, cache.nbytes) == (size, size)
    b.read((0, 0, 0), (1, 1, 1))
    assert cache.nbytes == size
    a.read((0, 0, 0), (1, 1, 1))
    assert a.bytes_read == 2 * size


@pytest.mark.parametrize("read_by", [open_volume, GzipNiftiStream])
def test_a_damaged_compressed_nifti_is_never_read(tmp_path, read_by):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(values(shape=(16, 16, 16)), AFFINE), path)
    whole = path.read_bytes()
    found = set()
    for at in [*range(30, len(whole) - 8, len(whole) // 60), len(whole) - 8, len(whole) - 4]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(VolumeError, match=r"a\.nii\.gz: .*copy it again") as caught:
            read_by(str(path)).read((0, 0, 0), (16, 16, 16))
        found.add(type(caught.value.__cause__).__name__)
    assert {"BadGzipFile", "error"} <= found, "both a wrong checksum and a broken stream"


@pytest.mark.parametrize("box", [((0, 0, 0), (6, 1, 1)), ((-1, 0, 0), (1, 1, 1)), ((2, 2, 2), (2, 3, 3))])
def test_boxes_outside_or_empty_are_errors(box):
    with pytest.raises(IndexError, match="clip it"):
        ArrayVolume(values()).read(*box)


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "f4", "f8"])
def test_itk_images(tmp_path, ending, compressed, dtype):
    path = tmp_path / f"scan{ending}"
    image = itk.image_from_array(np.ascontiguousarray(values(dtype).T))
    image.SetSpacing([1.5, 2, 3])
    image.SetOrigin([4, -5, 6])
    image.SetDirection(np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]))
    itk.imwrite(image, str(path), compression=compressed)
    volume = open_volume(path, cache=BlockCache(1 << 20))
    assert isinstance(volume, Volume)
    assert volume.dtype == np.dtype(dtype)
    assert np.array_equal(volume.read((1, 2, 3), (4, 6, 5)), values(dtype)[1:4, 2:6, 3:5])
    streamed = ending != ".nrrd" and not compressed
    box, all_of_it = 3 * 4 * 2 * np.dtype(dtype).itemsize, 5 * 6 * 7 * np.dtype(dtype).itemsize
    assert volume.bytes_read == (box if streamed else all_of_it)
    np.testing.assert_allclose(volume.affine, [[0, 2, 0, -4], [-1.5, 0, 0, 5], [0, 0, 3, 6], [0, 0, 0, 1]], atol=1e-12)
    like_monai(path, volume)


def test_itk_refuses_vectors_and_broken_files(tmp_path):
    image = itk.image_from_array(np.zeros((4, 5, 6, 3), np.float32), is_vector=True)
    itk.imwrite(image, str(tmp_path / "vector.mha"))
    with pytest.raises(VolumeError, match="3 values a voxel"):
        open_volume(tmp_path / "vector.mha")
    (tmp_path / "text.nrrd").write_text("no scan")
    with pytest.raises(VolumeError, match=r"text\.nrrd"):
        open_volume(tmp_path / "text.nrrd")


def test_arrays_and_tensors():
    array = values()
    for source in (array, np.asfortranarray(array), torch.from_numpy(array), MetaTensor(array, affine=AFFINE)):
        volume = open_volume(source)
        assert np.array_equal(volume.read((1, 1, 1), (3, 4, 5)), array[1:3, 1:4, 1:5])
    np.testing.assert_array_equal(volume.affine, AFFINE)
    np.testing.assert_array_equal(open_volume(array, affine=AFFINE).affine, AFFINE)
    assert open_volume(volume) is volume
    assert open_volume(array).identity != open_volume(array).identity
    assert open_volume(array > 3).read((0, 0, 0), (1, 1, 1)).dtype == np.uint8
    with pytest.raises(VolumeError, match=r"\(2, 3\)"):
        open_volume(np.zeros((2, 3)))
    with pytest.raises(VolumeError, match="invertible"):
        open_volume(array, affine=np.zeros((4, 4)))


def test_unknown_sources(tmp_path):
    (tmp_path / "scan.png").write_bytes(b"")
    with pytest.raises(VolumeError, match=r"scan\.png: unknown format"):
        open_volume(tmp_path / "scan.png")
    with pytest.raises(FileNotFoundError, match=r"missing\.nii"):
        open_volume(tmp_path / "missing.nii")
    with pytest.raises(VolumeError, match="type int"):
        open_volume(3)


@pytest.mark.parametrize(
    "pattern",
    ["nrrd_mha/3DCT_lung_baseline_small.mha", "nrrd_mha/*.nrrd", "nrrd_mha/*.nii.gz", "ixi_age/t1/*012*.nii.gz",
     "hippocampus/images/*_001.nii.gz", "hippocampus/images/*_003.nii.gz"],
)  # fmt: skip
def test_real_files_are_those_of_monai(real, pattern):
    path = next(iter(real.glob(pattern)))
    like_monai(path, open_volume(path))

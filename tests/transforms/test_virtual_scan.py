"""VirtualScan: parity with dense arrays, laziness, statistics."""

import os
import pickle
import re
import time
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from cpic_monai.transforms import HUWindow, PercentileScaled, ScaleRange, VirtualScan, ZScoreSampled
from cpic_monai.volumes import ArrayVolume, BlockCache, CachedVolume, open_volume


@pytest.fixture
def array():
    return np.random.default_rng(1).integers(-500, 500, (19, 23, 17)).astype(np.int16)


def cubes(dense, voxels, size, padding):
    """Patches cut from a padded dense array: what VirtualScan must give."""
    padded = np.pad(dense, 40, constant_values=padding)
    half = size // 2
    return np.stack([padded[tuple(slice(v + 40 - half, v + 41 + half) for v in voxel)] for voxel in voxels])


def random_voxels(shape, n=100, beyond=8, seed=0):
    return np.random.default_rng(seed).integers(-beyond, np.array(shape) + beyond, (n, 3))


@pytest.mark.parametrize("size", [1, 3, 9])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_identity_is_a_dense_gather_with_padding(array, size, order):
    scan = VirtualScan(ArrayVolume(array), order=order, padding_value=-7)
    voxels = random_voxels(array.shape)
    patches = scan.patches(torch.from_numpy(voxels), size)
    assert patches.dtype == torch.float32
    assert patches.shape == (100, 1, size, size, size)
    np.testing.assert_array_equal(patches[:, 0], cubes(array, voxels, size, -7))
    np.testing.assert_array_equal(scan.affine, np.eye(4))


def test_every_flip_and_transpose_is_a_dense_gather(array):
    for axes, signs in product(permutations(range(3)), product([1, -1], repeat=3)):
        turned = array.transpose(axes)[tuple(slice(None, None, s) for s in signs)]
        affine = np.eye(4)
        affine[:3, :3] = 0
        for out_axis, (source_axis, sign) in enumerate(zip(axes, signs, strict=True)):
            affine[source_axis, out_axis] = sign
            affine[source_axis, 3] = 0 if sign == 1 else array.shape[source_axis] - 1
        scan = VirtualScan(ArrayVolume(array), affine, turned.shape, padding_value=3)
        assert scan.grid_aligned
        voxels = random_voxels(turned.shape, 20)
        np.testing.assert_array_equal(scan.patches(voxels, 5)[:, 0], cubes(turned, voxels, 5, 3))


def test_crop_and_pad_are_virtual(array):
    affine = np.eye(4)
    affine[:3, 3] = (4, -3, 0)
    scan = VirtualScan(ArrayVolume(array), affine, (10, 30, 17), padding_value=-1)
    dense = np.pad(array, ((0, 0), (3, 4), (0, 0)), constant_values=-1)[4:14]
    voxels = random_voxels(scan.shape)
    np.testing.assert_array_equal(scan.patches(voxels, 7)[:, 0], cubes(dense, voxels, 7, -1))


def rotated(degrees, zoom=1.0, shift=(2.3, -1.1, 0.6)):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([zoom, 1, 1 / zoom])
    affine[:3, 3] = shift
    return affine


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("affine", [rotated(17), rotated(-40, 0.4), np.diag([0.5, 0.25, 1, 1.0]), rotated(5, 3.0)])
def test_any_affine_is_a_dense_resampling(array, order, affine):
    scan = VirtualScan(ArrayVolume(array.astype(np.float32)), affine, (20, 20, 20), order, padding_value=11)
    assert not scan.grid_aligned
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in scan.shape), indexing="ij"), -1).reshape(-1, 3)
    places = grid @ affine[:3, :3].T + affine[:3, 3]
    inside = ((places >= -0.5) & (places <= np.array(array.shape) - 0.5)).all(1)
    nearest = np.clip(places, 0, np.array(array.shape) - 1.0)
    if order == 0:
        values = array[tuple(np.floor(nearest + 0.5).astype(int).T)]
    else:
        values = map_coordinates(array.astype(float), nearest.T, order=order, mode="mirror")
    dense = np.where(inside, values, 11).reshape(scan.shape)
    voxels = random_voxels(scan.shape, 60)
    np.testing.assert_allclose(scan.patches(voxels, 7)[:, 0], cubes(dense, voxels, 7, 11), atol=5e-3 if order else 0)
    np.testing.assert_allclose(scan.box((3, 0, 5), (9, 20, 6))[0], dense[3:9, :, 5:6], atol=5e-3 if order else 0)


def test_results_do_not_depend_on_how_many_are_asked(array, monkeypatch):
    scan = VirtualScan(ArrayVolume(array), rotated(17))
    voxels = random_voxels(array.shape)
    at_once = scan.patches(voxels, 5)
    monkeypatch.setattr("cpic_monai.transforms.resampler.CHUNK_BYTES", 20_000)
    assert torch.equal(scan.patches(voxels, 5), at_once)
    assert torch.equal(torch.cat([scan.patches(v[None], 5) for v in voxels]), at_once)
    assert scan.patches(voxels[:0], 5).shape == (0, 1, 5, 5, 5)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_context_scales_average_a_ramp_exactly(factor):
    # Means over symmetric boxes and linear interpolation leave a linear function as it is, away from borders.
    i, j, k = np.meshgrid(*(np.arange(n) for n in (48, 50, 52)), indexing="ij")
    scan = VirtualScan(ArrayVolume((3.0 * i - 2 * j + k).astype(np.float32)))
    voxels = np.random.default_rng(0).integers(20, 28, (30, 3))
    patches = scan.patches(voxels, 5, (1, factor))
    assert patches.shape == (30, 2, 5, 5, 5)
    line = np.arange(-2, 3)
    step = 3 * line[:, None, None] - 2 * line[:, None] + line
    middle = voxels @ [3, -2, 1]
    np.testing.assert_allclose(patches[:, 0], middle[:, None, None, None] + step, atol=1e-4)
    np.testing.assert_allclose(patches[:, 1], middle[:, None, None, None] + factor * step, atol=1e-3)


def test_context_scale_on_the_levels_grid_is_the_mean_over_boxes(array):
    scan = VirtualScan(ArrayVolume(array))
    voxels = np.array([[7, 10, 7], [10, 13, 10]])  # centres of boxes 6..8 and so on: 3 y + 1
    patches = scan.patches(voxels, 3, (3,))[:, 0].numpy()
    for n, (a, b, c) in product(range(2), product(range(3), repeat=3)):
        low = voxels[n] + 3 * (np.array([a, b, c]) - 1) - 1
        box = array[tuple(slice(x, x + 3) for x in low)]
        assert patches[n, a, b, c] == pytest.approx(box.mean(), abs=1e-2)


def test_context_of_an_upsampled_view_is_the_scan_itself(array):
    fine = VirtualScan(ArrayVolume(array), np.diag([0.5, 0.5, 0.5, 1]), tuple(2 * n for n in array.shape))
    voxels = np.array([[8, 10, 12]])
    np.testing.assert_allclose(
        fine.patches(voxels, 3, (2,))[0, 0], VirtualScan(ArrayVolume(array)).patches(voxels // 2, 3)[0, 0]
    )


def test_channels_and_scales_are_stacked_scale_by_scale(array):
    two = VirtualScan([ArrayVolume(array), ArrayVolume(-2 * array)])
    assert two.channels == 2
    patches = two.patches(random_voxels(array.shape), 3, (1, 2))
    assert patches.shape == (100, 4, 3, 3, 3)
    assert torch.equal(patches[:, 1], -2 * patches[:, 0])
    torch.testing.assert_close(patches[:, 3], -2 * patches[:, 2])
    with pytest.raises(ValueError, match="one grid"):
        VirtualScan([ArrayVolume(array), ArrayVolume(array[1:])])


def test_intensity_runs_on_patches_and_padding(array):
    scan = VirtualScan(ArrayVolume(array), padding_value=-1024, intensity=HUWindow(-200, 300))
    voxels = random_voxels(array.shape)
    expected = np.clip((cubes(array.astype(float), voxels, 5, -1024) + 200) / 500, 0, 1)
    np.testing.assert_allclose(scan.patches(voxels, 5)[:, 0], expected, atol=1e-6)


def test_z_score_has_the_samples_mean_and_deviation(array):
    other = (5 * array.astype(np.float32)) + 10_000
    volumes = [ArrayVolume(array), ArrayVolume(other)]
    scan = VirtualScan(volumes, intensity=ZScoreSampled(n=4096))
    mean, deviation = scan.statistic(4096)
    np.testing.assert_allclose(mean, [array.mean(), other.mean()], atol=4 * other.std() / 64)
    np.testing.assert_allclose(deviation, [array.std(), other.std()], rtol=0.03)
    voxels = random_voxels(array.shape, beyond=0)
    raw = VirtualScan(volumes).patches(voxels, 1).flatten(1).double().numpy()
    np.testing.assert_allclose(scan.patches(voxels, 1).flatten(1), (raw - mean) / deviation, atol=2e-4)


def test_statistics_do_not_change_with_augmentation_or_call(array):
    cache = BlockCache(1 << 20)
    volume = CachedVolume(ArrayVolume(array), cache)
    first = VirtualScan(volume).statistic(500)
    turned = VirtualScan(volume, rotated(30), (9, 9, 9)).statistic(500)
    np.testing.assert_array_equal(first, turned)
    np.testing.assert_array_equal(first, VirtualScan(ArrayVolume(array)).statistic(500))
    assert VirtualScan(volume).statistic(500, foreground=0)[0] > 100


def test_percentiles_and_chains(array):
    steps = [ScaleRange(-500, 500, 0, 100), PercentileScaled(10, 90, n=20_000)]
    values = VirtualScan(ArrayVolume(array), intensity=steps).patches(random_voxels(array.shape, 5000, 0), 1)
    low, high = (values == 0).float().mean(), (values == 1).float().mean()
    assert abs(low - 0.1) < 0.02
    assert abs(high - 0.1) < 0.02
    assert values.median() == pytest.approx(0.5, abs=0.03)


def test_constant_scan_becomes_zero():
    flat = ArrayVolume(np.full((5, 5, 5), 7, np.int16))
    for intensity in (ZScoreSampled(100), ZScoreSampled(100, foreground=9), PercentileScaled(n=100)):
        assert (VirtualScan(flat, intensity=intensity).patches(np.array([[2, 2, 2]]), 3) == 0).all()


def test_not_pointwise_intensity_is_refused(array):
    scan = VirtualScan(ArrayVolume(array), intensity=lambda x: x.mean(0))
    with pytest.raises(ValueError, match="only pointwise"):
        scan.patches(np.array([[1, 1, 1]]), 3)


def test_foreground_voxels_are_bright_random_and_reproducible():
    array = np.zeros((40, 40, 40), np.uint8)
    array[10:20, 5:15, 30:38] = 9
    scan = VirtualScan(ArrayVolume(array))
    voxels = scan.foreground_voxels(50, torch.Generator().manual_seed(3))
    assert voxels.dtype == torch.int64
    assert voxels.shape == (50, 3)
    assert (array[tuple(voxels.T)] == 9).all()
    assert len(np.unique(voxels, axis=0)) > 20
    assert torch.equal(voxels, scan.foreground_voxels(50, torch.Generator().manual_seed(3)))
    assert not torch.equal(voxels, scan.foreground_voxels(50, 4))


def test_empty_scan_has_no_foreground():
    scan = VirtualScan(ArrayVolume(np.zeros((8, 9, 10), np.uint8)), subject="ID7")
    with pytest.raises(ValueError, match="subject ID7: no voxel above"):
        scan.foreground_voxels(5, 0, on_empty="error")
    with pytest.warns(RuntimeWarning, match="ID7"):
        voxels = scan.foreground_voxels(500, 0)
    assert voxels.max(0).values.tolist() == [7, 8, 9]
    assert voxels.min() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.patches(np.zeros((2, 3), int), 4), "must be odd"),
        (lambda s: s.patches(np.zeros((2, 3)), 3), "float64"),
        (lambda s: s.patches(np.zeros((2, 2), int), 3), r"\(2, 2\)"),
        (lambda s: s.patches(np.zeros((2, 3), int), 3, (0,)), "scales"),
        (lambda s: VirtualScan(s.volumes, order=2), "order is 2"),
        (lambda s: VirtualScan(s.volumes, np.zeros((4, 4))), "invertible"),
    ],
)
def test_wrong_arguments(array, call, message):
    with pytest.raises(ValueError, match=message):
        call(VirtualScan(ArrayVolume(array)))


def test_fast_path_is_fast():
    array = np.random.default_rng(0).integers(-1000, 400, (32, 512, 512)).astype(np.int16)
    scan = VirtualScan(ArrayVolume(array), intensity=HUWindow(), padding_value=-1024)
    voxels = np.random.default_rng(0).integers(0, array.shape, (1700, 3))
    times = []
    for _ in range(8):
        start = time.process_time()
        scan.patches(voxels, 9)
        times.append(time.process_time() - start)
    # 0.011 s of one core where nothing else runs; the bound leaves room for a busy machine.
    assert min(times) < 0.06


def resident_bytes_of(path):
    """Pages of a mapped file that this process has touched (Linux)."""
    maps = Path("/proc/self/smaps").read_text()
    return 1024 * sum(int(n) for n in re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss:\s+(\d+) kB", maps))


@pytest.fixture
def sparse_gigabyte(tmp_path):
    """A 1 GiB NIfTI (1024 x 1024 x 512 int16), written sparse, with a known value at 300 voxels."""
    path = tmp_path / "huge.nii"
    header = nib.Nifti1Header()
    header.set_data_shape((1024, 1024, 512))
    header.set_data_dtype(np.int16)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header.set_sform(np.diag([0.5, 0.5, 0.5, 1]), 1)
    voxels = np.random.default_rng(5).integers(0, (1024, 1024, 512), (300, 3))
    with open(path, "wb") as file:
        file.write(header.binaryblock + bytes(4))
        file.truncate(352 + (1 << 30))
        for number, (i, j, k) in enumerate(voxels.tolist()):
            file.seek(352 + 2 * (i + 1024 * (j + 1024 * k)))
            file.write(np.int16(number + 1).tobytes())
        file.flush()
        os.fsync(file.fileno())
        # Out of the page cache, so that the kernel maps no page that is not asked for.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    yield path, voxels
    path.unlink()


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="counts touched pages through Linux's /proc")
def test_only_patches_of_a_gigabyte_are_read(sparse_gigabyte):
    path, voxels = sparse_gigabyte
    assert path.stat().st_size == 352 + (1 << 30)
    volume = open_volume(path)
    scan = VirtualScan(volume, cache=BlockCache(1 << 20))
    assert volume.bytes_read == 0
    patches = scan.patches(voxels, 9)
    # Chosen voxels that fall in another's patch keep their own value at the centre.
    np.testing.assert_array_equal(patches[:, 0, 4, 4, 4], np.arange(1, 301))
    assert volume.bytes_read == scan.bytes_read == 300 * 9**3 * 2
    # A row of 9 voxels lies in a page of 4 KiB (or two), and rows lie 2 KiB apart: 9 slices of 5 or 6 pages a patch.
    assert 300 * 9 * 5 * 4096 * 0.8 < resident_bytes_of(path) < 300 * 9 * 6 * 4096
    assert scan.volumes[0].cache.nbytes == 0


def test_pickles_small_and_reads_the_same(sparse_gigabyte):
    path, voxels = sparse_gigabyte
    scan = VirtualScan(open_volume(path), rotated(10), intensity=HUWindow(0, 300))
    before = scan.patches(voxels[:5], 5)
    pickled = pickle.dumps(scan)
    assert len(pickled) < 10_000
    assert torch.equal(pickle.loads(pickled).patches(voxels[:5], 5), before)

"""Blocks are read once a call, the next ones while one is used; counted where they are read."""

from __future__ import annotations

import numpy as np
import pytest
from blocked import BlockedVolume
from stores import served, values

from cpic_monai.transforms import VirtualScan
from cpic_monai.volumes import ArrayVolume, BlockCache, CachedVolume, ChunkedVolume, VolumeError, write_store


@pytest.fixture
def array():
    return values((48, 40, 56), "int16")


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([0.9, 1.1, 0.8, 1.0])])
def test_a_chunk_is_decoded_once_a_call_though_the_cache_holds_none(array, affine):
    volume = BlockedVolume(array, (8, 8, 8))
    scan = VirtualScan(CachedVolume(volume, BlockCache(2 * 8**3 * 2)), affine)
    voxels = np.random.default_rng(0).integers(0, 40, (600, 3))
    expected = VirtualScan(ArrayVolume(array), affine).patches(voxels, 5)
    np.testing.assert_array_equal(scan.patches(voxels, 5), expected)
    assert len(volume.reads) == len(set(volume.reads)) <= 6 * 5 * 7


def test_a_voxel_named_twice_is_read_once(array):
    voxels = np.random.default_rng(0).integers(-3, 50, (40, 3))
    many = np.concatenate([voxels, voxels[::-1], voxels[:7]])
    once, repeated = VirtualScan(ArrayVolume(array)), VirtualScan(ArrayVolume(array))
    patches = once.patches(voxels, 3, (1, 2))
    found = repeated.patches(many, 3, (1, 2))
    np.testing.assert_array_equal(found, np.concatenate([patches, patches.flip(0), patches[:7]]))
    assert repeated.bytes_read == once.bytes_read > 0
    far = np.array([[0, 0, 0], [2**40, 2**40, -(2**40)], [0, 0, 0]])
    np.testing.assert_array_equal(once.patches(far, 1)[:, 0, 0, 0, 0], [array[0, 0, 0], 0, array[0, 0, 0]])


def test_reading_ahead_keeps_order_and_is_bounded(tmp_path, array, monkeypatch):
    write_store(ArrayVolume(array), tmp_path / "x.zarr", patch_size=3, levels=1)
    volume = ChunkedVolume(tmp_path / "x.zarr")
    most, waiting = [], 0
    original = ChunkedVolume._arrived

    def boxes():
        nonlocal waiting
        for k in range(50):
            waiting += 1
            most.append(waiting)
            yield (k % 30, 0, k), (k % 30 + 3, 5, k + 2)

    def arrived(*args):
        nonlocal waiting
        waiting -= 1
        return original(*args)

    monkeypatch.setattr(ChunkedVolume, "AHEAD", 4)
    monkeypatch.setattr(ChunkedVolume, "_arrived", arrived)
    for k, box in enumerate(volume.read_each(boxes())):
        np.testing.assert_array_equal(box, array[k % 30 : k % 30 + 3, :5, k : k + 2])
    assert max(most) == 4
    assert waiting == 0
    with pytest.raises(IndexError, match="reaches out"):
        list(volume.read_each([((0, 0, 0), (1, 1, 1)), ((0, 0, 0), (99, 1, 1))]))


def test_chunks_of_a_remote_store_are_fetched_together(tmp_path, array):
    write_store(ArrayVolume(array), tmp_path / "x.zarr", patch_size=3, levels=1)
    voxels = np.random.default_rng(1).integers(0, 40, (60, 3))
    with served(tmp_path, seconds=0.05) as (url, sent):
        volume = CachedVolume(ChunkedVolume(f"{url}/x.zarr", cache_bytes=1 << 20), BlockCache(1 << 24))
        found = volume.boxes(voxels, (3, 3, 3))
    np.testing.assert_array_equal(found, CachedVolume(ArrayVolume(array)).boxes(voxels, (3, 3, 3)))
    assert sent["most_at_once"] > 4, "a request waited for the one before"


def test_a_chunk_that_fails_on_its_way_is_named(tmp_path, array):
    write_store(ArrayVolume(array), tmp_path / "x.zarr", patch_size=3, levels=1)
    next((tmp_path / "x.zarr" / "0" / "c").rglob("0/0/0")).unlink()
    volume = CachedVolume(ChunkedVolume(tmp_path / "x.zarr", cache_bytes=3), BlockCache(1 << 24))
    with pytest.raises(VolumeError, match=r"x\.zarr: box .* of level 0 cannot be read"):
        volume.boxes(np.zeros((1, 3), np.int64), (20, 20, 20))

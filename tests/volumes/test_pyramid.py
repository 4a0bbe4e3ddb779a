"""Coarse levels on disk: the same means as made on the fly, for far fewer bytes."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from stores import AFFINE, served, values

from cpic_monai.transforms import VirtualScan
from cpic_monai.volumes import (
    ArrayVolume,
    BlockCache,
    CachedVolume,
    ChunkedVolume,
    PooledVolume,
    pooled_volume,
    write_store,
)


def stored(place: Path, array: np.ndarray, levels: int = 5) -> CachedVolume:
    """A store of chunks of 16 voxels, with a cache of its own."""
    write_store(ArrayVolume(array, AFFINE), place, patch_size=3, levels=levels)
    return CachedVolume(ChunkedVolume(place), BlockCache(1 << 26))


def whole(volume: CachedVolume) -> np.ndarray:
    return volume.read((0, 0, 0), volume.shape).astype(np.float64)


@pytest.mark.parametrize(
    ("factors", "level"),
    [((2, 2, 2), 1), ((4, 4, 4), 2), ((8, 4, 12), 2), ((6, 2, 2), 1), ((3, 3, 3), 0), ((16, 16, 1), 0), ((16,) * 3, 2)],
)
@pytest.mark.parametrize("dtype", ["float32", "int16", "uint8"])
def test_levels_on_disk_give_the_means_of_the_fly(tmp_path, factors, level, dtype):
    array = values((64, 48, 32), dtype)
    volume = stored(tmp_path / "x.zarr", array)
    assert volume.volume.levels == 3
    chosen, own = volume.stored_level(factors)
    assert own == (2**level,) * 3
    assert chosen.shape == tuple(n >> level for n in array.shape)
    coarse = pooled_volume(volume, factors)
    plain = PooledVolume(CachedVolume(ArrayVolume(array, AFFINE), BlockCache(1 << 26)), factors)
    np.testing.assert_allclose(coarse.affine, plain.affine, atol=1e-9)
    # Levels of whole numbers are rounded: half a unit at most, however coarse; a mean of rounded values no more.
    tolerance = 1e-5 if dtype == "float32" else 0.5 if level else 0
    np.testing.assert_allclose(whole(coarse), plain.read((0, 0, 0), plain.shape), atol=tolerance + 1e-6 * level)
    assert volume.volume.bytes_read == array.nbytes // 8**level


def test_levels_coarser_than_a_chunk_are_rounded_once_more(tmp_path):
    array = values((160, 20, 33), "uint8")
    volume = stored(tmp_path / "x.zarr", array[:, :16, :32], levels=6)
    assert volume.volume.levels == 5
    with_slabs = CachedVolume(ChunkedVolume(tmp_path / "x.zarr", level=4), BlockCache(1 << 26))
    exact = PooledVolume(CachedVolume(ArrayVolume(array[:, :16, :32]), BlockCache(1 << 26)), (16,) * 3)
    np.testing.assert_allclose(whole(with_slabs), exact.read((0, 0, 0), exact.shape), atol=0.5)


def test_ragged_levels_do_not_depend_on_how_the_scan_was_written(tmp_path, monkeypatch):
    array = values((133, 97, 41), "int16")
    monkeypatch.setattr("cpic_monai.volumes.write_chunked.SLAB_BYTES", 133 * 32 * 16 * 2)
    volume = stored(tmp_path / "x.zarr", array)
    np.testing.assert_array_equal(whole(volume), array)
    for level in range(1, volume.volume.levels):
        exact = PooledVolume(CachedVolume(ArrayVolume(array), BlockCache(1 << 26)), (2**level,) * 3)
        found = CachedVolume(volume.volume.at_level(level), BlockCache(1 << 26))
        np.testing.assert_allclose(whole(found), exact.read((0, 0, 0), exact.shape), atol=0.5)


def test_a_pyramid_of_other_make_is_used_only_where_it_holds_means(tmp_path):
    volume = stored(tmp_path / "x.zarr", values((64, 48, 32), "uint8"))
    place = tmp_path / "x.zarr" / "zarr.json"
    root = json.loads(place.read_text())
    root["attributes"]["ome"]["multiscales"][0]["type"] = "gaussian"
    place.write_text(json.dumps(root))
    other = ChunkedVolume(tmp_path / "x.zarr")
    assert other.stored_level((4, 4, 4)) == (other, (1, 1, 1))
    array = ArrayVolume(np.zeros((4, 4, 4)))
    assert array.stored_level((4, 4, 4)) == (array, (1, 1, 1))
    assert volume.stored_level((4, 4, 4))[1] == (4, 4, 4)


@pytest.mark.parametrize("scales", [(1, 4), (4, 16)])
def test_context_of_patches_reads_the_levels(tmp_path, scales):
    line = np.linspace(0, 6, 128)
    array = (100 * np.sin(line)[:, None, None] * np.cos(line)[:, None] + 20 * line + 100).astype(np.float32)
    store = stored(tmp_path / "x.zarr", array)
    voxels = np.random.default_rng(0).integers(30, 98, (25, 3))
    found = VirtualScan(store).patches(voxels, 3, scales)
    read = store.volume.bytes_read
    flat = CachedVolume(ChunkedVolume(tmp_path / "x.zarr"), BlockCache(1 << 26))
    flat.volume._means = False
    np.testing.assert_allclose(found, VirtualScan(flat).patches(voxels, 3, scales), atol=1e-3)
    assert read < flat.volume.bytes_read / (1.5 if scales[0] == 1 else 20)


def test_levels_of_a_remote_store_are_fetched_and_not_the_scan(tmp_path):
    array = values((64, 64, 64), "int16")
    stored(tmp_path / "x.zarr", array)
    with served(tmp_path) as (url, sent):
        remote = CachedVolume(ChunkedVolume(f"{url}/x.zarr"), BlockCache(1 << 26))
        coarse = pooled_volume(remote, (4, 4, 4))
        found = whole(coarse)
    for y in product((0, 15), repeat=3):
        box = array[tuple(slice(4 * i, 4 * i + 4) for i in y)]
        assert abs(found[y] - box.mean()) <= 0.5
    assert sent["bytes"] < array.nbytes / 16

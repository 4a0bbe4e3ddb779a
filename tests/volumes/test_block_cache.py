"""The block cache, batched boxes, and derived volumes."""

import pickle
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from blocked import BlockedVolume
from scipy.ndimage import spline_filter

from cpic_monai.volumes import ArrayVolume, BlockCache, CachedVolume, PooledVolume, SplineVolume, shared_cache


@pytest.fixture
def array():
    return np.random.default_rng(1).integers(-500, 500, (13, 17, 11)).astype(np.int16)


def blocks(n):
    return lambda: np.zeros(n, np.uint8)


def test_least_recently_used_goes_first():
    cache = BlockCache(100)
    for name in "abc":
        cache.get(name, blocks(40))
    assert "a" not in cache
    cache.get("b", blocks(40))
    cache.get("d", blocks(40))
    assert "b" in cache
    assert "c" not in cache
    assert (cache.nbytes, cache.hits, cache.misses, cache.bytes_read) == (80, 1, 4, 160)


def test_too_large_a_block_is_handed_out_with_a_warning():
    cache = BlockCache(10)
    with pytest.warns(RuntimeWarning, match="max_bytes = 10"):
        assert cache.get("a", blocks(11)).nbytes == 11
    assert cache.nbytes == len(cache) == 0


def test_held_blocks_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        BlockCache(10).get("a", blocks(4))[0] = 1


def test_pickles_without_blocks_and_is_one_a_process():
    cache = BlockCache(1 << 20)
    cache.get("a", blocks(1 << 16))
    pickled = pickle.dumps((cache, cache))
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[0] is cache
    code = (
        "import sys, pickle; a, b = pickle.loads(sys.stdin.buffer.read());"
        "assert a is b and len(a) == 0 and a.nbytes == 0 and a.max_bytes == 1 << 20"
    )
    subprocess.run([sys.executable, "-c", code], input=pickled, check=True)
    assert pickle.loads(pickle.dumps(shared_cache())) is shared_cache()


@pytest.mark.parametrize("block_shape", [(13, 17, 1), (4, 4, 4), (5, 17, 2), (13, 17, 11), None])
@pytest.mark.parametrize("edge", ["edge", "reflect"])
def test_boxes_are_those_of_the_padded_array(array, block_shape, edge):
    volume = ArrayVolume(array) if block_shape is None else BlockedVolume(array, block_shape)
    cached = CachedVolume(volume, BlockCache(1 << 20))
    padded = np.pad(array, 6, edge)
    starts = np.random.default_rng(2).integers(-4, 15, (80, 3)).clip(-4, np.array(array.shape) - 1)
    size = (5, 3, 7)
    boxes = cached.boxes(starts, size, "mirror" if edge == "reflect" else "replicate")
    reach = np.minimum(starts + size, np.array(array.shape) + 6) - starts
    for start, box, n in zip(starts, boxes, reach, strict=True):
        a, b, c = start + 6
        m = n if edge == "edge" else np.minimum(n, np.array(array.shape) + 3 - start)
        # A mirror is asked for up to the reach of a spline only; deeper in the padding anything may stand.
        low = np.maximum(-2 - start, 0) if edge == "reflect" else np.zeros(3, int)
        part = tuple(slice(x, y) for x, y in zip(low, m, strict=True))
        np.testing.assert_array_equal(box[part], padded[a : a + 5, b : b + 3, c : c + 7][part])


def test_each_block_is_read_once_a_call_even_without_room(array):
    volume = BlockedVolume(array, (4, 4, 4))
    cached = CachedVolume(volume, BlockCache(4 * 4 * 4 * 2))
    cached.boxes(np.random.default_rng(3).integers(-2, 12, (200, 3)), (5, 5, 5))
    assert len(volume.reads) == len(set(volume.reads)) <= 4 * 5 * 3


def test_only_touched_blocks_are_read(array):
    volume = BlockedVolume(array, (4, 4, 4))
    CachedVolume(volume, BlockCache(1 << 20)).boxes(np.array([[4, 4, 4], [3, 4, 4]]), (4, 4, 4))
    assert sorted(volume.reads) == [(0, 4, 4), (4, 4, 4)]


@pytest.mark.parametrize("factors", [(2, 2, 2), (4, 3, 1), (13, 17, 11)])
@pytest.mark.parametrize("block_shape", [(13, 17, 1), (4, 4, 4)])
def test_pooled_level_holds_means(array, factors, block_shape):
    level = PooledVolume(CachedVolume(BlockedVolume(array, block_shape), BlockCache(1 << 20)), factors)
    values = CachedVolume(level, BlockCache(1 << 20)).read((0, 0, 0), level.shape)
    for y in product(*(range(n) for n in level.shape)):
        part = tuple(slice(f * i, f * i + f) for f, i in zip(factors, y, strict=True))
        assert values[y] == pytest.approx(array[part].mean(), abs=1e-3)
    # The centre of the first voxel of the level, in source voxels, whose affine is the identity.
    np.testing.assert_allclose(level.affine[:3, 3], (np.array(factors) - 1) / 2)


def test_pooled_level_reads_a_slice_series_once(array):
    volume = BlockedVolume(array, (13, 17, 1))
    level = PooledVolume(CachedVolume(volume, BlockCache(13 * 17 * 2)), (4, 4, 4))
    CachedVolume(level, BlockCache(1 << 20)).boxes(np.zeros((3, 3), np.int64), (4, 5, 3))
    assert sorted(volume.reads) == [(0, 0, k) for k in range(11)]


@pytest.mark.parametrize("shape", [(40, 70, 45), (20, 21, 1)])
def test_spline_coefficients_by_block_are_those_of_the_whole(shape):
    source = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    volume = SplineVolume(CachedVolume(ArrayVolume(source), BlockCache(1 << 24)))
    blockwise = CachedVolume(volume, BlockCache(1 << 24), block_shape=(16, 16, 16)).read((0, 0, 0), shape)
    np.testing.assert_allclose(blockwise, spline_filter(source, 3, mode="mirror"), atol=2e-6 * 8)

"""OME-Zarr stores: what is written is read back, and only the chunks that a box touches are read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from stores import AFFINE, served, values

from cpic_monai.volumes import (
    ArrayVolume,
    CachedVolume,
    ChunkedVolume,
    PooledVolume,
    Volume,
    VolumeError,
    open_volume,
    verify_store,
    write_store,
)
from cpic_monai.volumes.store_access import context
from cpic_monai.volumes.write_chunked import VoxelDigest, chunk_edge, pyramid_shapes

SHAPE = (37, 50, 21)


def written(place: Path, array: np.ndarray, patch_size: int = 3, levels: int = 5) -> Path:
    """A store of ``array``; patches of 3 voxels make chunks of 16."""
    write_store(ArrayVolume(array, AFFINE), place, patch_size, levels)
    return place


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
def test_values_affine_and_type_come_back_exactly(tmp_path, dtype):
    array = values(SHAPE, dtype)
    volume = open_volume(str(written(tmp_path / "x.ome.zarr", array)))
    assert isinstance(volume, ChunkedVolume)
    assert isinstance(volume, Volume)
    assert volume.shape == SHAPE
    assert volume.dtype == np.dtype(dtype)
    assert volume.block_shape == (16, 16, 16)
    np.testing.assert_array_equal(volume.affine, AFFINE)
    np.testing.assert_allclose(volume.spacing, np.linalg.norm(AFFINE[:3, :3], axis=0))
    box = volume.read((0, 0, 0), SHAPE)
    assert box.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(box, array)
    np.testing.assert_array_equal(volume.read((15, 31, 7), (18, 50, 8)), array[15:18, 31:50, 7:8])


def test_one_bounded_cache_a_process_for_all_stores(tmp_path):
    array = values(SHAPE, "int16")
    volume = open_volume(written(tmp_path / "x.zarr", array), store_cache_bytes=54321)
    np.testing.assert_array_equal(volume.read((0, 0, 0), SHAPE), array)
    assert context(54321) is context(54321)
    assert context(54321)["cache_pool"].to_json() == {"total_bytes_limit": 54321}


def test_a_box_reads_only_the_chunks_it_touches(tmp_path):
    array = values((64, 64, 64), "int16")
    written(tmp_path / "x.zarr", array, levels=1)
    chunk = 16**3 * 2
    volume = open_volume(tmp_path / "x.zarr")
    volume.read((1, 1, 1), (10, 10, 10))
    assert volume.bytes_read == chunk
    volume.read((12, 12, 12), (20, 20, 20))
    assert volume.bytes_read == chunk + 8 * chunk
    with served(tmp_path) as (url, sent):
        remote = ChunkedVolume(f"{url}/x.zarr", cache_bytes=0)
        sent["bytes"] = 0
        np.testing.assert_array_equal(remote.read((33, 1, 49), (40, 9, 60)), array[33:40, 1:9, 49:60])
    # Random voxels do not compress: one chunk of 64, the shard's index of 64 entries, and headers.
    assert chunk <= sent["bytes"] < chunk * 1.5 + 64 * 16 + 5000


def test_the_border_chunk_counts_only_what_exists(tmp_path):
    volume = ChunkedVolume(written(tmp_path / "x.zarr", values(SHAPE, "uint8")))
    volume.read((36, 49, 20), SHAPE)
    assert volume.bytes_read == (37 - 32) * (50 - 48) * (21 - 16)


def test_over_http(tmp_path):
    array = values(SHAPE, "float32")
    written(tmp_path / "x.ome.zarr", array)
    with served(tmp_path) as (url, _):
        volume = open_volume(f"{url}/x.ome.zarr/")
        np.testing.assert_array_equal(volume.affine, AFFINE)
        np.testing.assert_array_equal(volume.read((3, 4, 5), (36, 40, 20)), array[3:36, 4:40, 5:20])
        assert isinstance(volume, ChunkedVolume)
        assert volume.at_level(1).shape == (19, 25, 11)
        with pytest.raises(FileNotFoundError, match=r"nowhere\.zarr/zarr\.json: not found"):
            open_volume(f"{url}/nowhere.zarr")


def test_a_server_without_byte_ranges_is_named(tmp_path):
    written(tmp_path / "x.ome.zarr", values(SHAPE, "float32"))
    with served(tmp_path, plain=True) as (url, _):
        volume = open_volume(f"{url}/x.ome.zarr")
        with pytest.raises(VolumeError, match=r"x\.ome\.zarr: box .* ignored by server.*byte ranges"):
            volume.read((0, 0, 0), (1, 1, 1))


def test_levels_are_means_and_lie_where_pooled_volumes_do(tmp_path):
    array = values((64, 32, 32), "float32")
    volume = ChunkedVolume(written(tmp_path / "x.zarr", array))
    assert volume.levels == 3  # 64, 32, 16: the last is one chunk
    for level in (1, 2):
        coarse = volume.at_level(level)
        pooled = PooledVolume(CachedVolume(ArrayVolume(array, AFFINE)), (2**level,) * 3)
        assert coarse.shape == pooled.shape
        np.testing.assert_allclose(coarse.affine, pooled.affine, atol=1e-12)
        whole = (0, 0, 0), coarse.shape
        np.testing.assert_allclose(coarse.read(*whole), pooled.read(*whole), atol=1e-6)
    with pytest.raises(VolumeError, match="level 3 is asked for, the store has levels 0 to 2"):
        volume.at_level(3)


def test_ragged_levels_average_what_exists_and_whole_numbers_are_rounded(tmp_path):
    array = np.zeros((33, 1, 1), np.int16)
    array[:4, 0, 0] = [1, 2, -3, -8]
    array[32] = 7
    coarse = ChunkedVolume(written(tmp_path / "x.zarr", array), level=1)
    assert coarse.shape == (17, 1, 1)
    found = coarse.read((0, 0, 0), coarse.shape)[:, 0, 0]
    assert found.dtype == np.int16
    assert found[[0, 1, 2, 16]].tolist() == [2, -6, 0, 7]  # 1.5, -5.5, 0 and a last voxel of its own


def test_metadata_is_ome_zarr(tmp_path):
    written(tmp_path / "lung.ome.zarr", values((40, 20, 50), "int16"), levels=2)
    root = json.loads((tmp_path / "lung.ome.zarr" / "zarr.json").read_text())
    assert (root["zarr_format"], root["node_type"]) == (3, "group")
    ome = root["attributes"]["ome"]
    assert ome["version"] == "0.5"
    (scan,) = ome["multiscales"]
    assert scan["name"] == "lung"
    assert scan["axes"] == [{"name": n, "type": "space", "unit": "millimeter"} for n in "zyx"]
    z, y, x = np.linalg.norm(AFFINE[:3, :3], axis=0)[::-1]
    for level, dataset in enumerate(scan["datasets"]):
        assert dataset["path"] == str(level)
        scale, shift = dataset["coordinateTransformations"]
        assert (scale["type"], shift["type"]) == ("scale", "translation")
        np.testing.assert_allclose(scale["scale"], np.array([z, y, x]) * 2**level)
        np.testing.assert_allclose(shift["translation"], np.array([z, y, x]) * [0, 0.5][level])
    assert len(scan["datasets"]) == 2
    own = root["attributes"]["cpic_monai"]
    np.testing.assert_array_equal(own["affine"], AFFINE)
    array = json.loads((tmp_path / "lung.ome.zarr" / "0" / "zarr.json").read_text())
    assert array["shape"] == [50, 20, 40]
    assert array["dimension_names"] == ["z", "y", "x"]
    (sharding,) = array["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["chunk_shape"] == [16, 16, 16]
    assert [c["name"] for c in sharding["configuration"]["codecs"]] == ["bytes", "blosc", "crc32c"]
    shard = array["chunk_grid"]["configuration"]["chunk_shape"]
    assert shard == [64, 32, 48]


def test_a_store_of_other_origin_takes_its_scale_in_millimetres(tmp_path):
    place = written(tmp_path / "x.zarr", values(SHAPE, "uint8"))
    root = json.loads((place / "zarr.json").read_text())
    del root["attributes"]["cpic_monai"]
    (scan,) = root["attributes"]["ome"]["multiscales"]
    for axis in scan["axes"]:
        axis["unit"] = "micrometer"
    scan["datasets"][1]["coordinateTransformations"] = [
        {"type": "scale", "scale": [8.0, 6.0, 4.0]},
        {"type": "translation", "translation": [3.0, 2.0, 1.0]},
    ]
    (place / "zarr.json").write_text(json.dumps(root))
    with pytest.warns(RuntimeWarning, match="no directions"):
        volume = ChunkedVolume(place, level=1)
    wanted = np.diag([0.004, 0.006, 0.008, 1.0])
    wanted[:3, 3] = [0.001, 0.002, 0.003]
    np.testing.assert_allclose(volume.affine, wanted, rtol=1e-12)
    with pytest.raises(VolumeError, match="no checksum"), pytest.warns(RuntimeWarning):
        verify_store(place)


@pytest.mark.parametrize(("axes", "order"), [("cxyz", (0, 3, 2, 1)), ("zyxc", (1, 2, 3, 0)), ("ctzyx", None)])
def test_a_store_may_have_axes_in_any_order_and_single_channels(tmp_path, axes, order):
    import tensorstore

    array = values((5, 6, 7), "int16")  # x, y, z
    stored = array.T[None] if order is None else array.T[None].transpose(order)
    stored = stored[None] if order is None else stored
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/x.zarr/s0/"}}
    made = tensorstore.open(spec, create=True, dtype=tensorstore.int16, shape=stored.shape).result()
    made.write(stored).result()
    scale = {"x": 0.5, "y": 1.0, "z": 2.0}
    transforms = [{"type": "scale", "scale": [scale.get(a, 1.0) for a in axes]}]
    scan = {"axes": [{"name": a} for a in axes], "datasets": [{"path": "s0", "coordinateTransformations": transforms}]}
    root = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", "multiscales": [scan]}}}
    (tmp_path / "x.zarr" / "zarr.json").write_text(json.dumps(root))
    with pytest.warns(RuntimeWarning, match="no directions"):
        volume = open_volume(tmp_path / "x.zarr")
    assert volume.spacing == (0.5, 1.0, 2.0)
    np.testing.assert_array_equal(volume.read((1, 2, 3), (5, 6, 7)), array[1:, 2:, 3:])


def test_pickled_volumes_open_again_and_cached_blocks_agree(tmp_path):
    array = values(SHAPE, "int16")
    volume = ChunkedVolume(written(tmp_path / "x.zarr", array))
    volume.read((0, 0, 0), (1, 1, 1))
    again = pickle.loads(pickle.dumps(volume))
    assert again.identity == volume.identity
    np.testing.assert_array_equal(again.read((5, 6, 7), (20, 21, 21)), array[5:20, 6:21, 7:21])
    starts = np.array([[0, 0, 0], [12, 13, 14], [-2, 45, 18]])
    boxes = CachedVolume(volume).boxes(starts, (9, 9, 9))
    np.testing.assert_array_equal(boxes, CachedVolume(ArrayVolume(array)).boxes(starts, (9, 9, 9)))


class Corners(torch.utils.data.Dataset):
    """The first voxel of a volume, read in a worker."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return int(self.volume.read((index, 0, 0), (index + 1, 1, 1))[0, 0, 0])


def test_loader_workers_read_also_after_this_process_has(tmp_path):
    array = values(SHAPE, "int16")
    volume = ChunkedVolume(written(tmp_path / "x.zarr", array))  # tensorstore's threads run: a plain fork would die
    loader = torch.utils.data.DataLoader(Corners(volume), batch_size=None, num_workers=1, timeout=300)
    assert [int(v) for v in loader] == array[:2, 0, 0].tolist()


def test_other_contents_have_another_identity(tmp_path):
    first = ChunkedVolume(written(tmp_path / "x.zarr", values(SHAPE, "int16"))).identity
    second = ChunkedVolume(written(tmp_path / "x.zarr", values(SHAPE, "int16", seed=1)))
    assert first != second.identity
    assert second.identity != second.at_level(1).identity


def test_boxes_outside_and_things_that_are_no_store_are_refused(tmp_path):
    volume = ChunkedVolume(written(tmp_path / "x.zarr", values(SHAPE, "int16")))
    with pytest.raises(IndexError, match="reaches out"):
        volume.read((0, 0, 0), (38, 1, 1))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.zarr"):
        open_volume(tmp_path / "nowhere.zarr")
    (tmp_path / "old.zarr").mkdir()
    with pytest.raises(FileNotFoundError, match="unfinished"):
        open_volume(tmp_path / "old.zarr")
    (tmp_path / "old.zarr" / ".zgroup").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no OME-Zarr"):
        open_volume(tmp_path / "old.zarr")
    (tmp_path / "old.zarr" / "zarr.json").write_text('{"zarr_format": 3, "attributes": {}}')
    with pytest.raises(VolumeError, match=r"no OME-Zarr 0\.4 or 0\.5 image"):
        open_volume(tmp_path / "old.zarr")
    with pytest.raises(ValueError, match="must end in"):
        write_store(volume, tmp_path / "plain")
    with pytest.raises(ValueError, match="cannot be written to"):
        write_store(volume, "https://example.org/x.zarr")


def test_a_damaged_chunk_is_noticed_when_read(tmp_path):
    place = written(tmp_path / "x.zarr", values(SHAPE, "int16"), levels=1)
    shard = place / "0" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(VolumeError, match=r"x\.zarr: box .* cannot be read"):
        ChunkedVolume(place, cache_bytes=1).read((0, 0, 0), SHAPE)


def test_a_lost_shard_is_an_error_and_not_zeros(tmp_path):
    place = written(tmp_path / "x.zarr", np.zeros(SHAPE, np.int16), levels=1)
    (place / "0" / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(VolumeError, match="cannot be read"):
        ChunkedVolume(place, cache_bytes=2).read((0, 0, 0), (1, 1, 1))


def test_the_checksum_is_of_voxels_and_not_of_slabs(tmp_path):
    array = values((5, 6, 4), "int16")
    whole, parts = (VoxelDigest(array.shape, array.dtype) for _ in range(2))
    whole.update(array, 0)
    parts.update(array[:, :2, :3], 0)
    parts.update(array[:, 2:, :3], 0)
    parts.update(array[:, :, 3:], 3)
    assert whole.hexdigest() == parts.hexdigest()
    array[4, 5, 3] += 1
    other = VoxelDigest(array.shape, array.dtype)
    other.update(array, 0)
    assert other.hexdigest() != whole.hexdigest()


@pytest.mark.parametrize(("patch", "edge"), [(1, 16), (5, 16), (9, 32), (11, 64), (17, 64), (33, 128), (65, 128)])
def test_chunks_follow_from_the_patch(patch, edge):
    assert chunk_edge(patch) == edge


def test_levels_end_at_one_chunk():
    assert pyramid_shapes((512, 512, 30), 5, 32)[-1] == (32, 32, 2)
    assert pyramid_shapes((20, 20, 20), 5, 32) == [(20, 20, 20)]
    with pytest.raises(ValueError, match="levels is 0"):
        pyramid_shapes((20, 20, 20), 0, 32)

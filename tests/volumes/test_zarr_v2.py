"""OME-Zarr 0.4 (Zarr version 2), as others write it, is read and converted; older versions are refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
from stores import served, values

from cpic_monai.volumes import ChunkedVolume, VolumeError, open_volume
from cpic_monai.volumes.convert import Settings, convert_scan

SHAPE = (20, 24, 9)
AXES = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "micrometer"} for a in "zyx")]

pytestmark = pytest.mark.filterwarnings("ignore:.*no directions:RuntimeWarning")


def written(place: Path, array: np.ndarray, dtype: str = "<i2", separator: str = "/", **scan: Any) -> Path:
    """A store of two levels, (c, z, y, x), of which the second has every other voxel."""
    datasets = []
    for level in range(2):
        stored = array[:: 2**level, :: 2**level, :: 2**level].T[None]
        metadata = {
            "dtype": dtype,
            "shape": list(stored.shape),
            "chunks": [1, 4, 8, 16],
            "dimension_separator": separator,
            "compressor": {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 1},
            "fill_value": None,
        }
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{place}/{level}/"}, "metadata": metadata}
        tensorstore.open(spec, create=True).result().write(stored).result()
        scale = [1.0, *(np.array([30.0, 20.0, 10.0]) * 2**level).tolist()]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    described = {"version": "0.4", "axes": AXES, "datasets": datasets} | scan
    (place / ".zgroup").write_text('{"zarr_format": 2}')
    (place / ".zattrs").write_text(json.dumps({"multiscales": [described], "omero": {}}))
    return place


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "|u1", "<f4"])
@pytest.mark.parametrize("separator", ["/", "."])
def test_values_scale_and_type(tmp_path, dtype, separator):
    native = np.dtype(dtype).newbyteorder("=")
    array = values(SHAPE, native.name)
    volume = open_volume(written(tmp_path / "x.ome.zarr", array, dtype, separator))
    assert isinstance(volume, ChunkedVolume)
    assert (volume.shape, volume.dtype, volume.block_shape, volume.levels) == (SHAPE, native, (16, 8, 4), 2)
    np.testing.assert_allclose(volume.affine, np.diag([0.01, 0.02, 0.03, 1]))
    box = volume.read((3, 4, 5), SHAPE)
    assert box.dtype == native
    np.testing.assert_array_equal(box, array[3:, 4:, 5:])
    again = pickle.loads(pickle.dumps(volume)).at_level(1)
    np.testing.assert_allclose(again.spacing, (0.02, 0.04, 0.06))
    np.testing.assert_array_equal(again.read((0, 0, 0), again.shape), array[::2, ::2, ::2])


def test_over_http(tmp_path):
    array = values(SHAPE, "int16")
    written(tmp_path / "x.ome.zarr", array)
    with served(tmp_path) as (url, _):
        np.testing.assert_array_equal(open_volume(f"{url}/x.ome.zarr").read((1, 2, 3), (9, 9, 9)), array[1:9, 2:9, 3:9])


def test_it_is_converted_but_never_taken_for_a_conversion(tmp_path):
    array = values(SHAPE, "int16")
    source = written(tmp_path / "x.zarr", array)
    convert_scan(source, tmp_path / "x.ome.zarr", Settings(3, verify=True))
    store = open_volume(tmp_path / "x.ome.zarr")
    np.testing.assert_array_equal(store.read((0, 0, 0), SHAPE), array)
    np.testing.assert_allclose(store.affine, np.diag([0.01, 0.02, 0.03, 1]))
    with pytest.raises(VolumeError, match=r"x\.zarr: holds another conversion"):
        convert_scan(tmp_path / "x.ome.zarr", source, Settings(3))


@pytest.mark.parametrize("axes", [None, ["c", "z", "y", "x"]])
def test_older_versions_are_refused_with_a_remedy(tmp_path, axes):
    place = written(tmp_path / "x.zarr", values(SHAPE, "int16"), version="0.3", axes=axes)
    with pytest.raises(VolumeError, match=r"x\.zarr: is OME-Zarr 0\.3; 0\.4 and 0\.5 are read.*ngff-zarr"):
        open_volume(place)


def test_records_are_no_scan(tmp_path):
    place = written(tmp_path / "x.zarr", values(SHAPE, "int16"))
    array = json.loads((place / "0" / ".zarray").read_text())
    (place / "0" / ".zarray").write_text(json.dumps(array | {"dtype": [["r", "|u1"], ["g", "|u1"]]}))
    with pytest.raises(VolumeError, match=r"x\.zarr: voxels of type .* are no real numbers"):
        open_volume(place)

"""OME-Zarr metadata: what a store's JSON says of a scan, written and read. No voxels here.

Written is version 0.5; read is 0.4, too, where the same words lie in other files (see ``zarr_metadata.py``).
Sources: the OME-NGFF specification, version 0.5 (ngff.openmicroscopy.org), and the Zarr core specification, version 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpic_monai.volumes.protocol import Index3, VolumeError

#: Key of our own attributes in the root group: affine, checksum, completion record.
NAMESPACE = "cpic_monai"
VERSION = "0.5"
#: The array's axes are (z, y, x), as viewers expect them: the voxel axes (k, j, i).
AXES = ("z", "y", "x")

_MILLIMETRES = {
    "millimeter": 1.0,
    "micrometer": 1e-3,
    "nanometer": 1e-6,
    "centimeter": 10.0,
    "meter": 1e3,
}


@dataclass(frozen=True)
class LevelHeader:
    """One array of a pyramid: its ``path`` in the store, and what there is to know before reading it.

    ``shape`` and ``chunk`` (the smallest piece that can be read) are in voxel axes (i, j, k). ``axes`` says which axis
    of the stored array is i, j and k; the others, ``single``, have length 1.
    """

    path: str
    shape: Index3
    chunk: Index3
    dtype: np.dtype
    affine: np.ndarray
    axes: Index3
    single: tuple[int, ...]


def level_affine(affine: np.ndarray, level: int) -> np.ndarray:
    """(4, 4) voxel to mm of a level: its voxels are 2**level times larger, the first begins where voxel 0 does."""
    factor = 2.0**level
    grow = np.diag([factor, factor, factor, 1.0])
    grow[:3, 3] = (factor - 1) / 2
    return np.asarray(affine, dtype=np.float64) @ grow


def root_metadata(name: str, affine: np.ndarray, levels: int, own: Mapping[str, Any]) -> dict[str, Any]:
    """The root group's ``zarr.json`` of a scan with ``levels`` arrays named 0, 1, ...; ``own`` is put in NAMESPACE."""
    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)[::-1]
    datasets = []
    for level in range(levels):
        scale = (spacing * 2**level).tolist()
        shift = (spacing * (2**level - 1) / 2).tolist()
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    scan = {
        "name": name,
        "type": "mean",
        "axes": [{"name": axis, "type": "space", "unit": "millimeter"} for axis in AXES],
        "datasets": datasets,
    }
    attributes = {
        "ome": {"version": VERSION, "multiscales": [scan]},
        NAMESPACE: {"affine": np.asarray(affine, dtype=np.float64).tolist(), "affine_space": "RAS+ mm", **own},
    }
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def array_metadata(shape: Sequence[int], dtype: np.dtype, chunk: int, shard: Sequence[int]) -> dict[str, Any]:
    """The ``zarr.json`` of one level; ``shape`` and ``shard`` in voxel axes (i, j, k), chunks are cubes.

    Inner chunks are shuffled, compressed by Blosc's Zstandard and end in a CRC-32C, so that a damaged one is noticed
    when it is read.
    """
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    blosc = {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 5, "shuffle": "shuffle"}}
    sharding = {
        "chunk_shape": [chunk] * 3,
        "codecs": [little, blosc, {"name": "crc32c"}],
        "index_codecs": [little, {"name": "crc32c"}],
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [int(n) for n in reversed(shape)],
        "data_type": np.dtype(dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [int(n) for n in reversed(shard)]}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "fill_value": 0,
        "dimension_names": list(AXES),
    }


def own_attributes(root: Mapping[str, Any]) -> dict[str, Any]:
    """What this package recorded in the root group; empty for stores that others wrote."""
    return dict(root.get("attributes", {}).get(NAMESPACE, {}))


def multiscale(location: str, root: Mapping[str, Any]) -> dict[str, Any]:
    """The first multiscale image of a root group.

    Raises
    ------
    VolumeError
        If the group is no OME-Zarr 0.4 or 0.5 image.
    """
    scans = root.get("attributes", {}).get("ome", {}).get("multiscales")
    if root.get("zarr_format") not in (2, 3) or not scans:
        raise VolumeError(
            f"{location}: its metadata describe no OME-Zarr 0.4 or 0.5 image (Zarr version {root.get('zarr_format')}, "
            f"attributes {sorted(root.get('attributes', {}))}); convert the scan with scripts/convert.py."
        )
    # Versions up to 0.3 name no axes, or by a letter only, and give no sizes of voxels.
    if not all(isinstance(axis, Mapping) for axis in scans[0].get("axes") or [None]):
        raise VolumeError(
            f"{location}: is OME-Zarr {scans[0].get('version', 'of an unknown version')}; 0.4 and 0.5 are read. "
            "Write it as 0.4 with the package ngff-zarr, or convert the scan it was made of with scripts/convert.py."
        )
    return dict(scans[0])


def level_header(
    location: str, root: Mapping[str, Any], level: int, read_array: Callable[[str], Mapping[str, Any]]
) -> LevelHeader:
    """Describe one level of a store; ``read_array(path)`` gives an array's ``zarr.json`` (or its like).

    Raises
    ------
    VolumeError
        If the level is missing, or not one 3-D scan of real numbers.
    """
    scan = multiscale(location, root)
    if not 0 <= level < len(scan["datasets"]):
        raise VolumeError(
            f"{location}: level {level} is asked for, the store has levels 0 to {len(scan['datasets']) - 1}."
        )
    dataset = scan["datasets"][level]
    array = read_array(dataset["path"])
    names = [axis["name"].lower() for axis in scan["axes"]]
    stored = [int(n) for n in array["shape"]]
    single = tuple(n for n, name in enumerate(names) if name not in AXES)
    if sorted(n for n in names if n in AXES) != sorted(AXES) or any(stored[n] != 1 for n in single):
        raise VolumeError(
            f"{location}: axes {dict(zip(names, stored, strict=True))} are not one 3-D scan; "
            "split channels and times into stores of axes z, y, x."
        )
    i, j, k = (names.index(name) for name in ("x", "y", "z"))
    try:
        dtype = np.dtype(array["data_type"]).newbyteorder("=")
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "iuf":
        raise VolumeError(f"{location}: voxels of type {array['data_type']!r} are no real numbers; convert them.")
    chunk = _smallest_piece(array)
    own = own_attributes(root)
    affine = level_affine(own["affine"], level) if "affine" in own else _affine_of_scale(location, scan, dataset)
    return LevelHeader(
        dataset["path"],
        (stored[i], stored[j], stored[k]),
        (chunk[i], chunk[j], chunk[k]),
        np.dtype(np.float32) if dtype == np.float16 else dtype,
        affine,
        (i, j, k),
        single,
    )


def _smallest_piece(array: Mapping[str, Any]) -> list[int]:
    for codec in array["codecs"]:
        if codec["name"] == "sharding_indexed":
            return [int(n) for n in codec["configuration"]["chunk_shape"]]
    return [int(n) for n in array["chunk_grid"]["configuration"]["chunk_shape"]]


def _affine_of_scale(location: str, scan: Mapping[str, Any], dataset: Mapping[str, Any]) -> np.ndarray:
    """Affine (RAS+ mm) of a store without ours: OME-Zarr gives scales and shifts but no directions."""
    affine = np.eye(4)
    for transform in [*dataset["coordinateTransformations"], *scan.get("coordinateTransformations", [])]:
        for n, axis in enumerate(scan["axes"]):
            if axis["name"].lower() not in AXES:
                continue
            at = 2 - AXES.index(axis["name"].lower())
            unit = axis.get("unit", "millimeter")
            if unit not in _MILLIMETRES:
                raise VolumeError(f"{location}: unit {unit!r} of axis {axis['name']} is none of {list(_MILLIMETRES)}.")
            if transform["type"] == "scale":
                affine[at] *= transform["scale"][n]
            elif transform["type"] == "translation":
                affine[at, 3] += transform["translation"][n]
    for axis in scan["axes"]:
        if axis["name"].lower() in AXES:
            affine[2 - AXES.index(axis["name"].lower())] *= _MILLIMETRES[axis.get("unit", "millimeter")]
    warnings.warn(
        f"{location}: the store gives voxel sizes but no directions; x, y, z are taken as right, anterior, superior.",
        RuntimeWarning,
        stacklevel=2,
    )
    return affine

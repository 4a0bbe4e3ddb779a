"""Reading the metadata of stores of Zarr version 3 (OME-Zarr 0.5) and 2 (OME-Zarr 0.4), both in the words of version 3.

Source: the Zarr storage specification, version 2 (zarr-specs.readthedocs.io).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpic_monai.volumes.store_access import read_json

#: tensorstore's driver for arrays of each version.
DRIVERS = {3: "zarr3", 2: "zarr"}

Document = tuple[dict[str, Any], str]


def read_root(location: str, storage: Mapping[str, Any] | None = None) -> Document:
    """The root group of a store, and its stamp, see :func:`~cpic_monai.volumes.store_access.read_json`.

    Raises
    ------
    FileNotFoundError
        If there is no store, or neither ``zarr.json`` nor ``.zattrs`` in it.
    VolumeError
        See there.
    """
    try:
        return read_json(location, "zarr.json", storage)
    except FileNotFoundError as missing:
        try:
            attributes, stamp = read_json(location, ".zattrs", storage)
        except FileNotFoundError:
            raise missing from None
    return {"zarr_format": 2, "attributes": {"ome": attributes}}, stamp


def read_array(location: str, name: str, zarr_format: int, storage: Mapping[str, Any] | None = None) -> Document:
    """One array of a store: its ``shape``, ``data_type``, ``chunk_grid`` and ``codecs``; and its stamp.

    Raises
    ------
    FileNotFoundError, VolumeError
        See :func:`~cpic_monai.volumes.store_access.read_json`.
    """
    if zarr_format == 3:
        return read_json(location, f"{name}/zarr.json", storage)
    array, stamp = read_json(location, f"{name}/.zarray", storage)
    grid = {"name": "regular", "configuration": {"chunk_shape": array["chunks"]}}
    return {"shape": array["shape"], "data_type": array["dtype"], "chunk_grid": grid, "codecs": []}, stamp

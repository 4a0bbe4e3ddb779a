"""Where a chunked store lies and how tensorstore reaches it: folders, http(s)://, s3:// and gs:// URLs."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cpic_monai.volumes.protocol import VolumeError

SCHEMES = ("http://", "https://", "s3://", "gs://")
#: tensorstore's own cache only has to hold shard indices and the chunks of one read: blocks are kept by BlockCache.
DEFAULT_CACHE_BYTES = 64 << 20

#: How tensorstore reports what it cannot read or decode, depending on the status.
STORE_ERRORS = (ValueError, OSError, RuntimeError, KeyError, NotImplementedError, TimeoutError)


def is_url(location: str) -> bool:
    """Whether ``location`` is a URL that tensorstore reads."""
    return location.lower().startswith(SCHEMES)


def names_no_path(location: str) -> bool:
    """Whether ``location`` is a URL of any kind that :func:`~cpic_monai.volumes.open_volume` takes, ``file://`` too."""
    return is_url(location) or location.lower().startswith("file://")


def local_path(location: str) -> str:
    """The path that a ``file://`` URL names; anything else as it is.

    Raises
    ------
    VolumeError
        If the URL names another computer.
    """
    if not location.lower().startswith("file://"):
        return location
    parts = urlsplit(location)
    if parts.netloc not in ("", "localhost"):
        raise VolumeError(f"{location}: names the computer {parts.netloc!r}; a file:// URL has three slashes.")
    return url2pathname(parts.path)


def is_store(location: str) -> bool:
    """Whether ``location`` names a chunked store: a URL, or a path that ends in ``.zarr``."""
    return is_url(location) or location.lower().rstrip("/").endswith(".zarr")


def kvstore(location: str, storage: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """tensorstore's key-value store for a folder or URL; ``storage`` adds to it (``aws_region``, ``endpoint``, ...).

    Raises
    ------
    VolumeError
        If the URL has no such form, or its driver knows no such ``storage``.
    """
    spec: dict[str, Any] = {"driver": "file", "path": os.path.abspath(location) + "/"}
    if is_url(location):
        try:
            spec = dict(tensorstore().KvStore.Spec(location.rstrip("/") + "/").to_json())
        except ValueError as error:
            raise VolumeError(
                f"{location}: not a URL that can be read ({error}); expected {', '.join(SCHEMES)}."
            ) from error
    if storage:
        driver, spec = spec["driver"], spec | dict(storage)
        try:
            tensorstore().KvStore.Spec(spec)
        except ValueError as error:
            raise VolumeError(
                f"{location}: `storage` with {', '.join(storage)} is none of tensorstore's key-value store driver "
                f"{driver!r} ({error}); its settings are in tensorstore's documentation."
            ) from error
    return spec


def tensorstore() -> Any:
    """Import tensorstore, and make loader workers start without a plain fork from now on.

    tensorstore runs threads, and ends any child that is forked after they have started. A start method ``fork`` is
    therefore changed to ``forkserver``, Python's default from 3.14 on: what workers get must be picklable, as volumes
    are. In a process that only reads headers of local stores nothing is changed.
    """
    import tensorstore as ts

    if multiprocessing.get_start_method(allow_none=True) in (None, "fork") and os.name == "posix":
        multiprocessing.set_start_method("forkserver", force=True)
        # The server imports these once, without threads; each worker would else spend seconds on it.
        multiprocessing.set_forkserver_preload(["__main__", "torch", "cpic_monai.volumes"])
    return ts


@functools.cache
def context(cache_bytes: int) -> Any:
    """One tensorstore context a process and cache size; all stores opened with it share the bound."""
    return tensorstore().Context({"cache_pool": {"total_bytes_limit": int(cache_bytes)}})


def read_json(location: str, key: str, storage: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    """Read one JSON document of a store; returns it and a stamp that changes when it is written anew.

    Raises
    ------
    FileNotFoundError
        If a folder, or the document in it, is missing.
    VolumeError
        If it cannot be read or is no JSON.
    """
    if is_url(location):
        url = f"{location.rstrip('/')}/{key}"
        try:
            found = tensorstore().KvStore.open(kvstore(location, storage)).result().read(key).result()
        except STORE_ERRORS as error:
            raise VolumeError(f"{url}: cannot be read ({error}); check the URL and your credentials.") from error
        if found.state != "value":
            raise FileNotFoundError(f"{url}: not found; check the URL, it must name a finished OME-Zarr store.")
        text, stamp = found.value, found.stamp.generation.hex()
    else:
        path = os.path.join(location, key)
        if not os.path.exists(location):
            raise FileNotFoundError(f"{location}: no such file or folder; check the path in the cohort's table.")
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"{path}: not found, the store is unfinished, or no OME-Zarr; convert the scan with scripts/convert.py."
            )
        with open(path, "rb") as file:
            text = file.read()
        status = os.stat(path)
        stamp = f"{status.st_mtime_ns}:{status.st_size}"
    try:
        return json.loads(text), stamp
    except ValueError as error:
        raise VolumeError(f"{location}/{key}: is no JSON ({error}); copy or convert the store anew.") from error

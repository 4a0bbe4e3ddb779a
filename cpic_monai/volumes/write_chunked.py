"""Writing a scan into an OME-Zarr store in slabs, its pyramid, and the checksum that proves what was written."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from tqdm import tqdm

from cpic_monai.atomic import replacing_folder
from cpic_monai.volumes.chunked import ChunkedVolume
from cpic_monai.volumes.nifti import GzipNiftiStream
from cpic_monai.volumes.ome_zarr import array_metadata, root_metadata
from cpic_monai.volumes.protocol import Index3, Volume, VolumeError
from cpic_monai.volumes.store_access import DEFAULT_CACHE_BYTES, context, is_url, kvstore, tensorstore

logger = logging.getLogger(__name__)

#: Version of the layout below; stores of another version are converted anew. 2: levels are means of the scan itself.
LAYOUT = 2
#: Most bytes of voxels read at once (unless one row of chunks is more).
SLAB_BYTES = 256 << 20
DEFAULT_LEVELS = 5

Box = tuple[Index3, Index3]


class VoxelDigest:
    """SHA-256 of a scan's voxels, independent of chunks and slabs.

    It is the digest of shape and type followed by the digests of the slices k = 0, 1, ...; a slice counts its voxels
    little-endian, j by j, i fastest.
    """

    def __init__(self, shape: Index3, dtype: np.dtype) -> None:
        self._head = f"{shape[0]}x{shape[1]}x{shape[2]} {np.dtype(dtype).name}".encode()
        self._little = np.dtype(dtype).newbyteorder("<")
        self._slices = [hashlib.sha256() for _ in range(shape[2])]

    def update(self, box: np.ndarray, first_slice: int) -> None:
        """Add rows of slices, (all i, some j, some k); each slice's rows must come in order."""
        for number in range(box.shape[2]):
            rows = np.ascontiguousarray(box[:, :, number].T, dtype=self._little)
            self._slices[first_slice + number].update(rows.data)

    def hexdigest(self) -> str:
        """``sha256:`` and 64 hexadecimal digits."""
        digests = b"".join(s.digest() for s in self._slices)
        return "sha256:" + hashlib.sha256(self._head + b"\0" + digests).hexdigest()


def chunk_edge(patch_size: int) -> int:
    """Edge of a cubic chunk for patches of ``patch_size`` voxels: the power of two from three patches on, 16 to 128.

    A patch then touches (1 + (p - 1) / c)**3 < 2.4 chunks on average: 1.95 for 9 voxels and chunks of 32.
    """
    if patch_size < 1:
        raise ValueError(f"patch_size is {patch_size}; a patch has 1 voxel or more along each axis.")
    return int(min(128, max(16, 1 << (3 * patch_size - 1).bit_length())))


def pyramid_shapes(shape: Index3, levels: int, chunk: int) -> list[Index3]:
    """Shapes of up to ``levels`` levels, each half the one before (rounded up); none below one that is a chunk."""
    if levels < 1:
        raise ValueError(f"levels is {levels}; a store has 1 (the scan alone) or more.")
    shapes = [shape]
    while len(shapes) < levels and max(shapes[-1]) > chunk:
        i, j, k = shapes[-1]
        shapes.append(((i + 1) // 2, (j + 1) // 2, (k + 1) // 2))
    return shapes


def _shard(shape: Index3, itemsize: int, chunk: int) -> Index3:
    """Four chunks along each axis, fewer where the scan is smaller, or where a slab of whole slices takes too much."""
    i, j, k = (min(4, -(-n // chunk)) for n in shape)
    fits = SLAB_BYTES // (shape[0] * shape[1] * chunk * itemsize)
    return (i * chunk, j * chunk, max(1, min(k, fits)) * chunk)


def slabs(volume: Volume, depth: int, rows: int) -> Iterator[Box]:
    """Boxes that cover a scan: ``depth`` slices, whole where SLAB_BYTES allow, else in multiples of ``rows`` rows."""
    ni, nj, nk = volume.shape
    row = ni * depth * volume.dtype.itemsize
    # A stream that went back for the next rows would decompress the file again.
    if isinstance(volume, GzipNiftiStream) or row * nj <= SLAB_BYTES:
        step = nj
    else:
        step = max(1, SLAB_BYTES // (row * rows)) * rows
    for k, j in product(range(0, nk, depth), range(0, nj, step)):
        yield (0, j, k), (ni, min(j + step, nj), min(k + depth, nk))


def write_store(
    volume: Volume,
    location: str | os.PathLike[str],
    patch_size: int = 9,
    levels: int = DEFAULT_LEVELS,
    record: Mapping[str, Any] | None = None,
    storage: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> str:
    """Write a scan as an OME-Zarr 0.5 store, sharded, with a pyramid of 2x means, a slab in memory at a time.

    A folder is written under a hidden name of its own beside its place, ``.NAME.<random>.part``, and renamed when it is
    complete; what was there is then replaced. A process that is killed leaves it behind: delete it. At a URL the
    root's ``zarr.json`` comes last: without it a store cannot be opened. Only one process may write a store there.

    Levels have the scan's type and are means over the scan's own voxels (as many as exist at the far border), so what
    whole numbers lose by rounding (to the nearest, halves to even) is half a unit at most at any level whose voxels
    are no larger than a chunk. Coarser ones are means of the coarsest of those: half a unit more.

    Parameters
    ----------
    volume
        What to write; the values are those of ``volume.read``.
    location
        A folder, or an ``s3://`` or ``gs://`` URL; whose name ends in ``.ome.zarr`` or ``.zarr``.
    patch_size
        Extent of the patches to be read, which chunks are made for: see :func:`chunk_edge`.
    levels
        Most levels, the scan itself included.
    record
        Further attributes (numbers, strings) to keep with the scan.
    storage
        See :class:`ChunkedVolume`.
    progress
        Show a progress bar (of voxels).

    Returns
    -------
    str
        The checksum, see :class:`VoxelDigest`.

    Raises
    ------
    ValueError
        If the place cannot be written to, its name does not end so, or a size is below 1.
    VolumeError
        If the scan cannot be read.
    """
    target = os.fspath(location)
    if target.lower().startswith(("http://", "https://")):
        raise ValueError(f"{target}: web servers cannot be written to; write a folder, or to s3:// or gs://.")
    if is_url(target):
        return _write(volume, target, patch_size, levels, record or {}, storage, progress=progress)
    final = Path(os.path.abspath(target))
    if final.suffix.lower() != ".zarr":  # else a slip could replace a folder of other things
        raise ValueError(f"{target}: the name of a store must end in .ome.zarr or .zarr.")
    leftovers = [str(left) for left in final.parent.glob(f".{glob.escape(final.name)}.*")]
    if leftovers:  # of this moment or of last year: only the user knows
        logger.warning(
            "%s: found %s, of another conversion that is running or was killed; if none is running, delete it.",
            final,
            ", ".join(leftovers),
        )
    with replacing_folder(final) as part:
        return _write(volume, str(part), patch_size, levels, record or {}, storage, final.name, progress)


def _write(
    volume: Volume,
    place: str,
    patch_size: int,
    levels: int,
    record: Mapping[str, Any],
    storage: Mapping[str, Any] | None,
    name: str | None = None,
    progress: bool = False,
) -> str:
    ts = tensorstore()
    chunk = chunk_edge(patch_size)
    shapes = pyramid_shapes(volume.shape, levels, chunk)
    base = kvstore(place, storage)
    root = ts.KvStore.open(base).result()
    root.write("zarr.json", None).result()  # unfinished from here on
    arrays = []
    for level, shape in enumerate(shapes):
        spec = {
            "driver": "zarr3",
            "kvstore": base | {"path": f"{base.get('path', '')}{level}/"},
            "metadata": array_metadata(shape, volume.dtype, chunk, _shard(shape, volume.dtype.itemsize, chunk)),
            "store_data_equal_to_fill_value": True,
        }
        opened = ts.open(spec, create=True, delete_existing=True, context=context(DEFAULT_CACHE_BYTES)).result()
        arrays.append(opened.T)
    digest = VoxelDigest(volume.shape, volume.dtype)
    _, rows, depth = _shard(volume.shape, volume.dtype.itemsize, chunk)
    pooled = min(chunk.bit_length() - 1, len(shapes) - 1)  # up to here a slab holds whole voxels of the level
    # Below another bar it goes when it is full (`leave`), or each scan of a cohort would leave a line.
    every = math.prod(volume.shape)
    with tqdm(total=every, unit="voxel", unit_scale=True, desc="write", disable=not progress, leave=None) as bar:
        for first, last in slabs(volume, depth, rows):
            box = volume.read(first, last)
            digest.update(box, first[2])
            for level in range(pooled + 1):
                means = box if level == 0 else ts.downsample(ts.array(box), [2**level] * 3, "mean")
                part = tuple(slice(a >> level, -(-b >> level)) for a, b in zip(first, last, strict=True))
                arrays[level][part].write(means).result()
            bar.update(box.size)
    for level in range(pooled + 1, len(shapes)):
        means = ts.downsample(arrays[pooled], [2 ** (level - pooled)] * 3, "mean")
        edges = _shard(shapes[level], volume.dtype.itemsize, chunk)
        for corner in product(*(range(0, n, e) for n, e in zip(shapes[level], edges, strict=True))):
            part = tuple(slice(c, min(c + e, n)) for c, e, n in zip(corner, edges, shapes[level], strict=True))
            arrays[level][part].write(means[part]).result()
    own = {
        "layout": LAYOUT,
        "checksum": digest.hexdigest(),
        "chunk": chunk,
        "levels": len(shapes),
        **record,
    }
    title = (name or unquote(place.rstrip("/").rsplit("/", 1)[-1])).removesuffix(".zarr").removesuffix(".ome")
    metadata = root_metadata(title, volume.affine, len(shapes), own)
    root.write("zarr.json", json.dumps(metadata, indent=2).encode()).result()
    return digest.hexdigest()


def verify_store(location: str | os.PathLike[str], storage: Mapping[str, Any] | None = None) -> str:
    """Read a store whole, in slabs, and compare with its checksum, which is returned.

    Raises
    ------
    VolumeError
        If a chunk is damaged or missing, the voxels are not those that were written, or no checksum was recorded.
    """
    volume = ChunkedVolume(location, storage=storage)
    recorded = volume.attributes.get("checksum")
    if not recorded:
        raise VolumeError(
            f"{volume.path}: no checksum is recorded in the store; convert the scan with scripts/convert.py."
        )
    chunk = int(volume.attributes["chunk"])
    _, rows, depth = _shard(volume.shape, volume.dtype.itemsize, chunk)
    digest = VoxelDigest(volume.shape, volume.dtype)
    for first, last in slabs(volume, depth, rows):
        digest.update(volume.read(first, last), first[2])
    if digest.hexdigest() != recorded:
        raise VolumeError(
            f"{volume.path}: checksum of the voxels is {digest.hexdigest()}, recorded when written was {recorded}: "
            "the store is damaged or was changed; convert the scan again with --overwrite."
        )
    return str(recorded)

"""Cohorts turned into chunked stores: in slabs, in parallel, and picked up again where a run was interrupted."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from cpic_monai.atomic import replacing
from cpic_monai.volumes.cache import BlockCache
from cpic_monai.volumes.chunked import ChunkedVolume
from cpic_monai.volumes.dicom_header import DICOM_SUFFIXES
from cpic_monai.volumes.nifti import GzipNiftiStream
from cpic_monai.volumes.open import open_volume
from cpic_monai.volumes.protocol import Volume, VolumeError
from cpic_monai.volumes.store_access import STORE_ERRORS, is_url, kvstore, local_path
from cpic_monai.volumes.write_chunked import DEFAULT_LEVELS, LAYOUT, chunk_edge, verify_store, write_store
from cpic_monai.volumes.zarr_metadata import read_root

SUFFIX = ".ome.zarr"
_KNOWN = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", *DICOM_SUFFIXES, SUFFIX, ".zarr")


@dataclass(frozen=True)
class Settings:
    """How scans are converted.

    ``patch_size`` and ``levels`` are those of :func:`~cpic_monai.volumes.write_store`; ``overwrite`` replaces stores
    whatever they hold; ``verify`` reads each store back and compares checksums; ``options`` go to ``open_volume``;
    ``storage`` is that of :class:`~cpic_monai.volumes.ChunkedVolume`, for the stores written.
    """

    patch_size: int = 9
    levels: int = DEFAULT_LEVELS
    overwrite: bool = False
    verify: bool = False
    options: Mapping[str, Any] | None = None
    storage: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Conversion:
    """What became of one scan: ``written``, ``kept`` (finished by an earlier run) or ``failed``, and why."""

    source: str
    target: str
    status: Literal["written", "kept", "failed"]
    reason: str = ""


def store_folder(output: str | os.PathLike[str], storage: Mapping[str, Any] | None = None) -> str:
    """Where stores are written to: the absolute path of a folder (``file://`` too), or an ``s3://`` or ``gs://`` URL.

    Raises
    ------
    ValueError
        If it is another URL, or ``storage`` is not for such a place.
    """
    place = os.fspath(output)
    if "://" in place and not place.lower().startswith(("file://", "s3://", "gs://")):
        raise ValueError(f"{place}: cannot be written to; give a folder, or a file://, s3:// or gs:// URL.")
    folder = place.rstrip("/") if is_url(place) else str(Path(local_path(place)).expanduser().resolve())
    if storage or is_url(folder):
        kvstore(folder, storage)  # a slip shows now, not once a scan
    return folder


def store_place(folder: str, name: str) -> str:
    """A store of :func:`store_folder`; signs that mean something in URLs are quoted there."""
    return f"{folder}/{quote(name)}" if is_url(folder) else os.path.join(folder, name)


def _open_once(source: str, options: Mapping[str, Any]) -> Volume:
    """Open a scan to be read once from front to back; a file that can only be decoded whole is held whole, once."""
    if source.lower().endswith(".nii.gz"):
        return GzipNiftiStream(source)
    return open_volume(source, cache=BlockCache(sys.maxsize), **options)


def completion_record(volume: Volume, settings: Settings) -> dict[str, Any]:
    """What a finished store keeps of where it came from. The source's path is hashed: it may name a patient."""
    return {
        "source": hashlib.sha256(volume.identity.encode()).hexdigest(),
        "patch_size": settings.patch_size,
        "levels_wanted": settings.levels,
    }


def _is_finished(target: str, record: Mapping[str, Any], storage: Mapping[str, Any] | None) -> bool:
    """Whether ``target`` is complete and of this source and these settings.

    Raises
    ------
    VolumeError
        If something else is there.
    """
    if is_url(target):
        try:
            read_root(target, storage)
        except FileNotFoundError:  # it is written last: nothing is there, or what an interrupted conversion left
            return False
    elif not os.path.lexists(target):
        return False
    remedy = "pass --overwrite to replace it, or choose another output folder."
    try:
        found = ChunkedVolume(target, storage=storage).attributes
    except FileNotFoundError as error:
        raise VolumeError(f"{target}: exists but is no finished store ({error}); {remedy}") from error
    wanted = {**record, "layout": LAYOUT, "chunk": chunk_edge(record["patch_size"])}
    other = {key: (found.get(key), value) for key, value in wanted.items() if found.get(key) != value}
    other.pop("patch_size", None)  # only the chunk that follows from it matters
    if other:
        differ = ", ".join(f"{key} is {have!r}, wanted {want!r}" for key, (have, want) in other.items())
        raise VolumeError(f"{target}: holds another conversion (changed source or settings): {differ}; {remedy}")
    return True


def convert_scan(
    source: str | os.PathLike[str], target: str | os.PathLike[str], settings: Settings, progress: bool = False
) -> Conversion:
    """Convert one scan, unless ``target``, a folder or URL, is finished already.

    Raises
    ------
    FileNotFoundError, VolumeError
        If the scan cannot be read, ``target`` holds something else, or the checksum is wrong.
    """
    start, place = os.fspath(source), os.fspath(target)
    volume = _open_once(start, settings.options or {})
    record = completion_record(volume, settings)
    status: Literal["written", "kept"] = "kept"
    if settings.overwrite or not _is_finished(place, record, settings.storage):
        write_store(volume, place, settings.patch_size, settings.levels, record, settings.storage, progress)
        status = "written"
    if settings.verify:
        verify_store(place, settings.storage)
    return Conversion(start, place, status)


def _attempt(source: str, target: str, settings: Settings, progress: bool) -> Conversion:
    """Convert one of many: a scan that cannot be read is reported and the others go on."""
    try:
        return convert_scan(source, target, settings, progress)
    except STORE_ERRORS as error:
        return Conversion(source, target, "failed", f"{type(error).__name__}: {error}")


def convert_scans(
    pairs: Mapping[str, str], settings: Settings | None = None, workers: int = 1, progress: bool = True
) -> list[Conversion]:
    """Convert many scans, several at a time.

    Parameters
    ----------
    pairs
        Source by target: ``{target: source}``, see :func:`store_place`.
    workers
        Processes. Each holds a slab (256 MiB) at most, or a whole scan where the format cannot be read in parts.
    progress
        Show a progress bar of scans, and with one worker a second one of the voxels of the scan that is written.

    Returns
    -------
    list of Conversion
        In the order of ``pairs``; look for ``failed`` ones.
    """
    settings = settings or Settings()
    within = progress and workers == 1  # bars of several processes would write over each other
    jobs = [delayed(_attempt)(source, target, settings, within) for target, source in pairs.items()]
    run = Parallel(n_jobs=workers, return_as="generator_unordered")
    done = {}
    with tqdm(run(jobs), total=len(jobs), unit="scan", desc="convert", disable=not progress) as bar:
        for conversion in bar:
            done[conversion.target] = conversion
            if conversion.status == "failed":
                bar.write(f"failed: {conversion.reason}", file=sys.stderr)
    return [done[target] for target in pairs]


def store_name(path: str) -> str:
    """Name of the store of a scan: its own, with the suffix ``.ome.zarr`` for whatever it had."""
    plain = path.rstrip("/")
    for suffix in _KNOWN:
        if plain.lower().endswith(suffix):
            return plain[: -len(suffix)] + SUFFIX
    return plain + SUFFIX


def convert_table(
    table: str | os.PathLike[str],
    columns: Sequence[str],
    output: str | os.PathLike[str],
    settings: Settings | None = None,
    workers: int = 1,
    progress: bool = True,
    copy: str | os.PathLike[str] | None = None,
) -> tuple[Path, list[Conversion]]:
    """Convert the scans that a CSV (or .tsv) names, and write a copy of it that names the stores.

    Stores lie in ``output`` (see :func:`store_folder`) as the scans do beside the table; those from elsewhere get their
    file's name. The copy is the file ``copy``, by default of the table's name in ``output``. It has all other cells as
    they were, and paths relative to itself if it lies in ``output``, else whole ones. Empty cells stay empty; a scan
    that failed is named by the place where its store will be.

    Raises
    ------
    ValueError
        If a column is missing, two scans would have one store, or the copy would replace the table or lie at a URL.
    """
    path = Path(table).expanduser().resolve()
    folder = store_folder(output, settings.storage if settings else None)
    wanted = local_path(os.fspath(copy or store_place(folder, path.name)))
    if "://" in wanted:
        raise ValueError(f"{wanted}: the copy of the table must be a local file; name one with --table.")
    made = Path(wanted).expanduser().resolve()
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise ValueError(f"{path}: no column {missing}; found {list(frame.columns)}. Name them with --image_column.")
    if made == path:
        raise ValueError(f"{path}: the copy of the table would replace it; choose another output folder, or --table.")
    pairs: dict[str, str] = {}
    for column in columns:
        cells = frame[column].str.strip()
        for cell in cells[cells != ""].unique():
            source = cell if is_url(cell) else os.path.abspath(path.parent / Path(local_path(cell)).expanduser())
            inside = not is_url(cell) and Path(source).is_relative_to(path.parent)
            relative = Path(source).relative_to(path.parent) if inside else Path(source.rstrip("/")).name
            name = store_name(str(relative))
            place = store_place(folder, name)
            if pairs.setdefault(place, source) != source:
                raise ValueError(f"{path}: {pairs[place]} and {source} would both become {name}; rename one.")
            frame[column] = frame[column].mask(cells == cell, name if str(made.parent) == folder else place)
    done = convert_scans(pairs, settings, workers, progress)
    with replacing(made) as part:
        frame.to_csv(part, sep=separator, index=False)
    return made, done

"""Which data a result comes from: a checksum of a cohort's tables and scans that is cheap enough for every run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["data_checksum", "data_record"]

TABLES = ("*.csv", "*.tsv")


def _files(paths: Iterable[str | os.PathLike[str]], root: str | os.PathLike[str] | None) -> set[tuple[str, int]]:
    """Name and size in bytes of every file of these files and folders."""
    base = Path(root).resolve() if root is not None else None
    entries: set[tuple[str, int]] = set()
    for given in {Path(path).resolve() for path in paths}:
        if not given.exists():
            raise FileNotFoundError(f"data_checksum: {given} does not exist; was the scan moved since it was listed?")
        for file in sorted(given.rglob("*")) if given.is_dir() else [given]:
            if file.is_file():
                inside = base is not None and file.is_relative_to(base)
                name = file.relative_to(base) if inside and base is not None else file.relative_to(given.parent)
                entries.add((name.as_posix(), file.stat().st_size))
    return entries


def _digest(entries: set[tuple[str, int]]) -> str:
    digest = hashlib.sha256()
    for posix, size in sorted(entries):
        digest.update(f"{posix}\0{size}\n".encode())
    return digest.hexdigest()


def data_checksum(paths: Iterable[str | os.PathLike[str]], root: str | os.PathLike[str] | None = None) -> str:
    """
    SHA-256 over names and sizes of the files of a data set; contents are not read.

    Parameters
    ----------
    paths : iterable of path
        Files, or folders (DICOM series) whose files all count. Order and repeats do not matter.
    root : path, optional
        Names are taken relative to it, so that it may lie anywhere; without it, or for files outside it, names are the
        last part, for files in a folder of `paths` from that folder on.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    """
    return _digest(_files(paths, root))


def data_record(
    paths: Iterable[Any],
    root: str | os.PathLike[str] | None = None,
    tables: Iterable[str | os.PathLike[str]] | None = None,
) -> dict[str, Any]:
    """
    Checksum of a cohort: every byte of its tables, name and size of every file of its scans.

    Parameters
    ----------
    paths : iterable
        Scans: files, folders, lists of them (channels), or URLs, of which the text counts.
    root : path, optional
        See `data_checksum`.
    tables : iterable of path, optional
        Read whole. By default the ``.csv`` and ``.tsv`` files directly in `root`.

    Returns
    -------
    dict
        ``data_sha256``, and ``data``: ``tables`` (name to SHA-256 of its bytes), ``scans_sha256``, ``files`` and
        ``bytes`` of the scans, ``hashed`` (what was, in words).

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    """
    given = [part for path in paths for part in (path if isinstance(path, (list, tuple)) else [path])]
    urls = {str(path) for path in given if "://" in str(path)}
    entries = _files([path for path in given if str(path) not in urls], root)
    if tables is None:
        tables = sorted(path for kind in TABLES for path in Path(root).glob(kind)) if root is not None else []
    contents = {Path(table).name: hashlib.sha256(Path(table).read_bytes()).hexdigest() for table in tables}
    scans = _digest(entries | {(url, 0) for url in urls})
    whole = hashlib.sha256("\n".join([scans, *(f"{name} {contents[name]}" for name in sorted(contents))]).encode())
    return {
        "data_sha256": whole.hexdigest(),
        "data": {
            "tables": contents,
            "scans_sha256": scans,
            "files": len(entries) + len(urls),
            "bytes": sum(size for _, size in entries),
            "hashed": "every byte of the tables; of the scans, the names and sizes of their files, not their content",
        },
    }

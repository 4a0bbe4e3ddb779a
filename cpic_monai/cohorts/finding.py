"""Scans in folders: which files and folders are one, and what they are called."""

from __future__ import annotations

import logging
import mimetypes
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cpic_monai.volumes.dicom_header import DICOM_SUFFIXES, is_dicom

__all__ = ["SUFFIXES", "find_scans"]

logger = logging.getLogger(__name__)

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")

#: Python's own list of types, without that of this computer, on which ``.1`` may be a page of a manual.
_TYPES = mimetypes.MimeTypes()


def find_scans(source: str | Path | Sequence[str | Path], stores_of: str | Path | None = None) -> dict[str, Path]:
    """Scans by name: single files (NIfTI, NRRD, MetaImage), folders of DICOM files, OME-Zarr stores (``*.zarr``).

    Parameters
    ----------
    source
        A folder, searched to any depth, links followed and what is hidden passed over; one scan; or a list of scans.
    stores_of
        A folder whose stores are passed over where a folder is searched: a conversion writes them there.

    Raises
    ------
    FileNotFoundError
        If a path does not exist, or a folder holds no scan.
    ValueError
        If two scans have one name.
    """
    given = [source] if isinstance(source, str | Path) else source
    paths = [Path(os.path.abspath(Path(p).expanduser())) for p in given]  # a link's own name has the suffix
    missing = [str(p) for p in paths if not p.exists()]
    if missing:
        raise FileNotFoundError(f"scans not found: {', '.join(missing[:5])}; check `dataset_dir` or `scans`")
    written = None if stores_of is None else Path(stores_of).expanduser().resolve()
    found: list[Path] = []
    for path in paths:
        found += [path] if path.is_file() or path.suffix.lower() == ".zarr" else _search(path.resolve(), written)
    if not found:
        raise FileNotFoundError(
            f"{', '.join(map(str, paths))}: no scan found; expected {', '.join(SUFFIXES)}, folders of DICOM files, "
            "or .zarr stores"
        )
    named: dict[str, Path] = {}
    for path in found:
        name = _name(path)
        if name in named and named[name] != path:
            raise ValueError(f"two scans are named {name!r}: {named[name]} and {path}; rename one")
        named[name] = path
    return named


def _search(root: Path, written: Path | None) -> list[Path]:
    """Stores, files and series below a folder; how many files are none of them goes to the log."""
    stores: list[Path] = []
    files: list[Path] = []
    series: list[Path] = []
    passed: Counter[str] = Counter()
    seen: set[Path] = set()
    for place, folders, names in os.walk(root, followlinks=True):
        here = Path(place)
        if here.resolve() in seen:  # by another link
            folders.clear()
            continue
        seen.add(here.resolve())
        inner = [here / f for f in sorted(folders) if not f.startswith(".") and not _leads_back(here / f, root)]
        chunked = [f for f in inner if f.suffix.lower() == ".zarr"]
        stores += [f for f in chunked if written is None or not f.resolve().is_relative_to(written)]
        folders[:] = [f.name for f in inner if f not in chunked]
        others: list[Path] = []
        for file in (here / name for name in sorted(names) if not name.startswith(".")):
            (files if file.name.lower().endswith(SUFFIXES) else others).append(file)
        if any(_may_be_slice(file) and is_dicom(str(file)) for file in others):
            series.append(here)
        else:
            passed.update(file.suffix.lower() or "no suffix" for file in others)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in passed.most_common(8)) or "none"
    scans = [*sorted(stores), *sorted(files), *sorted(series)]
    logger.info("%s: %d scans, %d other files passed over (%s)", root, len(scans), passed.total(), kinds)
    return scans


def _leads_back(folder: Path, root: Path) -> bool:
    """Whether a folder is a link to one in ``root`` that is searched anyway, or to one that ``root`` lies in."""
    if not folder.is_symlink():
        return False
    target = folder.resolve()
    if target.is_relative_to(root):
        return not any(part.startswith(".") for part in target.relative_to(root).parts)
    return root.is_relative_to(target)


def _may_be_slice(file: Path) -> bool:
    """Whether a file is worth opening to see if it is DICOM: a folder may hold thousands of tables and pictures."""
    name = file.name.lower()
    known = name.endswith(DICOM_SUFFIXES) or _TYPES.guess_type(name) == (None, None)
    return known and name != "dicomdir" and file.is_file()


def _name(path: Path) -> str:
    suffixes = (".ome.zarr", ".zarr", "") if path.is_dir() else _by_length()
    suffix = next(s for s in suffixes if path.name.lower().endswith(s))
    return path.name[: len(path.name) - len(suffix)]


def _by_length() -> list[str]:
    """Suffixes, ``.nii.gz`` before ``.nii``; a single DICOM file counts by its own."""
    return sorted((*SUFFIXES, *DICOM_SUFFIXES, ""), key=len, reverse=True)

"""Files and folders that are never half written: a reader sees the old ones or the new ones."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replace_folder", "replacing", "replacing_folder", "write_text_atomically"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it once written, and removed if writing fails.

    The folder is made if missing. The temporary name ends as ``path`` does, because writers go by the suffix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # there only if something above failed


def write_text_atomically(path: str | os.PathLike[str], text: str) -> Path:
    """
    Write UTF-8 text to a temporary name in the same folder, then rename it.

    Parameters
    ----------
    path : path
        Its folder is made if missing.
    text : str
        Written as it is, without translating line ends.

    Returns
    -------
    Path

    Raises
    ------
    OSError
        If the folder cannot be made or written; an older file stays as it was.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return Path(path)


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path``, for a folder that takes its place; if none is written ``path`` is removed.

    Each writer has a name of its own, ``.NAME.<random>.part``: of several at a time the last to finish stays, whole.
    It is removed if writing fails; a process that was killed leaves it behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    word = uuid.uuid4().hex[:8]
    fresh, old = (path.with_name(f".{path.name}.{word}.{kind}") for kind in ("part", "old"))
    try:
        yield fresh
        _swap(fresh, path, old)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # there only if something above failed
        shutil.rmtree(old, ignore_errors=True)


def _swap(fresh: Path, path: Path, old: Path) -> None:
    """Move ``path`` to ``old`` and ``fresh`` to ``path``: folders cannot be replaced in one step."""
    while True:
        with suppress(FileNotFoundError):
            os.replace(path, old)
        try:
            if fresh.exists():
                os.replace(fresh, path)
            return
        except OSError:
            if not path.exists():
                if old.exists():
                    os.replace(old, path)
                raise
            # Another writer was quicker between the two steps: its folder is replaced in turn.
            shutil.rmtree(old, ignore_errors=True)


def replace_folder(path: str | os.PathLike[str], files: Mapping[str, bytes]) -> Path:
    """
    Make a folder hold these files and no others, by way of a temporary folder beside it.

    Parameters
    ----------
    path : path
        Without files it is removed.
    files : mapping
        Name to content.

    Returns
    -------
    Path

    Raises
    ------
    OSError
        If it cannot be written; an older folder stays as it was.
    """
    with replacing_folder(path) as fresh:
        if files:
            fresh.mkdir()
            for name, data in files.items():
                (fresh / name).write_bytes(data)
    return Path(path)

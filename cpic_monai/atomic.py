"""Files and folders that are never half written: a reader sees the old ones or the new ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replace_folder", "replacing", "write_text_atomically"]


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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (path.with_name(f".{path.name}.{os.getpid()}.{word}") for word in ("tmp", "old"))
    try:
        if files:
            fresh.mkdir()
            for name, data in files.items():
                (fresh / name).write_bytes(data)
        if path.exists():
            os.replace(path, old)
        if files:
            os.replace(fresh, path)
    except OSError:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # there only if something above failed
        shutil.rmtree(old, ignore_errors=True)
    return path

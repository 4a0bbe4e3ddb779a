"""
Where a result comes from: versions, platform, seed, configuration and data, without a trace of whose machine it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cpic_monai.report.checksum import data_record
from cpic_monai.report.masking import command_without_secrets, without_secrets

__all__ = ["collect_provenance", "config_digest", "package_versions", "run_settings", "without_paths"]

PACKAGES = (
    "cpic-monai",
    "monai",
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "nibabel",
    "itk",
    "pydicom",
    "pytorch-ignite",
    "mlflow",
)
#: Keys that say where a run writes and what it is called.
OUTPUTS = ("output_dir", "phantom_dir", "tracking_uri", "experiment_name", "run_name")
#: With them no two runs would have one digest, and `command` has them.
PLACES = (*OUTPUTS, "bundle_root", "models_dir", "eval_dir")
#: What MONAI runs, as it is among the resolved values once it has been run.
WORKFLOWS = ("initialize", "run", "finalize")

# An absolute path of two parts or more: POSIX (also in sqlite:/// and file:// addresses, and after ~) or Windows.
_START = r"(?:(?:(?:sqlite|file)://+)?/|~/|[A-Za-z]:[\\/]|\\\\)"
_WHOLE = re.compile(rf"^()({_START}[^'\",;]*[\\/][^'\",;]+)$|^()(~/[^'\",;]+)$")
_QUOTED = re.compile(rf"(['\"])({_START}[^'\"]*[\\/][^'\"]+|~/[^'\"]+)(?=\1)")
_BARE = re.compile(rf"(^|[\s=(\[,;:@])({_START}[^\s'\",;:)\]]*[\\/][^\s'\",;:)\]]+|~/[^\s'\",;:)\]]+)")
_WEB = re.compile(r"(\bhttps?://[^\s'\"]+)")
_USER = re.compile(r"(?<=://)[^/@]*@")


def without_paths(value: Any) -> Any:
    """
    A copy of a configuration in which every absolute path is cut to its last part.

    Goes through mappings and sequences; keys and text are searched, `Path` objects become text, and objects that JSON
    does not know become the name of their type (their representation may hold paths or addresses in memory). Web
    addresses stay, without user name and password.
    """
    if isinstance(value, Mapping):
        return {without_paths(str(key)): without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [without_paths(item) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        return type(value).__name__

    def last_part(match: re.Match[str]) -> str:
        lead, path = (group for group in match.groups() if group is not None)
        return lead + re.split(r"[\\/]+", path.rstrip("\\/"))[-1]

    pieces = _WEB.split(value)  # the odd ones are web addresses, which lose only a user's name and password
    for k, piece in enumerate(pieces):
        if k % 2:
            pieces[k] = _USER.sub("", piece)
            continue
        # Whole text and quoted text first, because there a path may hold spaces.
        for pattern in (_WHOLE, _QUOTED, _BARE):
            pieces[k] = piece = pattern.sub(last_part, piece)
    return "".join(pieces)


def package_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Installed versions by distribution name; packages that are not installed are named as such."""
    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def config_digest(config: Mapping[str, Any]) -> str:
    """
    SHA-256 of a configuration, the same on every machine.

    Keys are sorted and absolute paths cut to their last part, so that moving the data does not change it.
    """
    text = json.dumps(without_paths(config), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def run_settings(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """
    The plain settings of a config as run: overlays, macros and overrides applied, expressions evaluated.

    Parameters
    ----------
    resolved : mapping
        Id to value, as MONAI's `ConfigParser` has resolved them so far; expressions of a config know it as
        ``__local_refs``. What nothing has referred to is not there: no setting that the run has used is missing once
        the run is over, so call it late.

    Returns
    -------
    dict
        Top-level keys, sorted, whose values are numbers, text, booleans, or lists and dictionaries of such. Components
        and what is None (unset, or disabled) are left out, and so are the keys in ``PLACES``.
    """
    found = {key: value for key, value in resolved.items() if "::" not in key and key not in (*PLACES, *WORKFLOWS)}
    return {key: found[key] for key in sorted(found) if found[key] is not None and _is_plain(found[key])}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if type(value) in (list, tuple):  # no named tuples, which calls return
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def collect_provenance(
    *,
    config: Mapping[str, Any] | None = None,
    seed: int | None = None,
    paths: Iterable[Any] | None = None,
    root: str | os.PathLike[str] | None = None,
    tables: Iterable[str | os.PathLike[str]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Everything needed to tell whether two results came from the same code, settings and data.

    Parameters
    ----------
    config : mapping, optional
        The settings, see `run_settings`.
    seed : int, optional
    paths, root, tables : optional
        See `checksum.data_record`.
    extra : mapping, optional
        Further entries, such as the epoch of the checkpoint.

    Returns
    -------
    dict
        ``date`` (UTC, ISO 8601), ``platform``, ``python``, ``packages``, ``command``, and as given ``seed``,
        ``config_sha256``, ``config``, ``data_sha256`` with ``data`` (of what it is) and the extra entries; no absolute
        path, no host, no user name and no setting of a store's access (see `masking`).
    """
    words = map(without_paths, command_without_secrets(sys.orig_argv[1:]))
    result: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": package_versions(),
        "command": " ".join([Path(sys.executable).name, *words]),
    }
    if seed is not None:
        result["seed"] = int(seed)
    if config is not None:
        config = without_secrets(config)
        result["config_sha256"] = config_digest(config)
        result["config"] = without_paths(config)
    if paths is not None:
        result |= data_record(paths, root, tables)
    return result | without_paths(dict(extra or {}))

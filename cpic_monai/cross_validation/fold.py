"""One fold of one method: a training run in a process of its own, done once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from cpic_monai.atomic import write_text_atomically
from cpic_monai.report.comparison import settings_that_differ
from cpic_monai.report.masking import without_secrets
from cpic_monai.report.provenance import OUTPUTS

__all__ = ["FoldRun", "SettingsChangedError"]

#: Keys that say where a fold is written and how fast it is computed, not what comes out.
FREE = ("_about_", *OUTPUTS, "num_workers", "cache_bytes")
TAIL = 3000


class SettingsChangedError(ValueError):
    """A fold is there that was made with other settings."""


class FoldRun:
    """
    A fold of a method, in a folder.

    Beside what training writes (``models/``, ``eval/``) the folder holds ``arguments.json`` (the fold by itself is
    ``python -m monai.bundle run --args_file arguments.json``), ``settings.json`` (the configuration after all overlays
    and overrides), ``log.txt``, and, once the fold is done, ``fold.json`` (``seconds``, wall time of the process). None
    has the settings of a store's access: ``settings.json`` has them masked, ``arguments.json`` lacks such an override.

    Parameters
    ----------
    method : str
    number : int
        From 0.
    folder : path
    run_id : str
        Workflow of the configuration that trains and evaluates.
    config_files : list of str
        The training configuration and its overlays.
    overrides : mapping
        Of the configuration's keys.
    logging_file : str, optional

    Raises
    ------
    TypeError
        If an override is no plain value, as JSON has them.
    """

    def __init__(
        self,
        method: str,
        number: int,
        folder: str | Path,
        run_id: str,
        config_files: list[str],
        overrides: Mapping[str, Any],
        logging_file: str | None = None,
    ) -> None:
        self.method, self.number, self.folder = method, number, Path(folder)
        self.run_id, self.config_files, self.logging_file = run_id, list(config_files), logging_file
        self.overrides = {**overrides, "output_dir": str(self.folder)}
        for key, value in self.overrides.items():
            try:
                json.dumps(value)
            except TypeError as error:
                raise TypeError(
                    f"{method}: the override {key!r} is no plain value ({error}): components and expressions in "
                    "`overrides` are made here, not in the fold; write them in an overlay and name it in config_files"
                ) from error

    def settings(self) -> dict[str, Any]:
        """The configuration that the fold is trained with, expressions as text, masked, without the keys in ``FREE``.

        Raises
        ------
        FileNotFoundError, ValueError
            If a configuration file cannot be read.
        """
        parser = ConfigParser(ConfigParser.load_config_files(self.config_files))
        parser.update(dict(self.overrides))
        parser.resolve_macro_and_relative_ids()
        config = {key: value for key, value in parser.get().items() if key not in FREE}
        # As it reads back from JSON: tuples are lists.
        return dict(without_secrets(json.loads(json.dumps(config, default=str))))

    def is_done(self) -> bool:
        """
        Whether the fold has been trained and evaluated already.

        Raises
        ------
        SettingsChangedError
            If it was with other settings; the first keys that differ are named with both values.
        """
        path = self.folder / "settings.json"
        if not path.is_file() and (self.folder / "eval" / "metrics.json").is_file():
            raise SettingsChangedError(
                f"{self.folder}: results without settings.json, so nobody knows how they were made; remove the folder "
                "or choose another output_dir"
            )
        if not (self.folder / "fold.json").is_file():
            return False  # never begun, failed or interrupted: it begins anew, with the settings of now
        before = without_secrets(json.loads(path.read_text(encoding="utf-8")))
        changed = settings_that_differ(before, self.settings())
        if changed:
            listed = "; ".join(f"{row['name']} was {row['first']!r}, is {row['second']!r}" for row in changed[:5])
            raise SettingsChangedError(
                f"{self.folder} was made with other settings: {listed}"
                + (f", and {len(changed) - 5} more" if len(changed) > 5 else "")
                + ". Set them back, remove that folder, or choose another output_dir"
            )
        return True

    def run(self, show: Callable[[str], None] | None = None, tracking: Mapping[str, str] | None = None) -> float:
        """
        Train and evaluate the fold in a new process.

        Parameters
        ----------
        show : callable, optional
            Given each line that the process prints, while it runs.
        tracking : mapping, optional
            ``tracking_uri``, ``experiment_name`` and ``run_name``.

        Returns
        -------
        float
            Wall time in seconds.

        Raises
        ------
        RuntimeError
            If the process fails: with the end of what it said, all of which is in ``log.txt``.
        """
        secret = {key: value for key, value in self.overrides.items() if without_secrets({key: value}) != {key: value}}
        plain = {key: value for key, value in self.overrides.items() if key not in secret}
        arguments = {"run_id": self.run_id, "config_file": self.config_files, **plain, **(tracking or {})}
        if self.logging_file:
            arguments["logging_file"] = self.logging_file
        write_text_atomically(self.folder / "settings.json", json.dumps(self.settings(), indent=2) + "\n")
        path = write_text_atomically(self.folder / "arguments.json", json.dumps(arguments, indent=2) + "\n")
        command = [sys.executable, "-m", "monai.bundle", "run", "--args_file", str(path)]
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as hidden:  # nobody else may read there, and MONAI logs arguments
            if secret:
                overlay = Path(hidden, "access.json")
                overlay.write_text(json.dumps(secret), encoding="utf-8")
                command += ["--config_file", str([*self.config_files, str(overlay)])]
            code = _logged(command, self.folder / "log.txt", show)
        seconds = time.monotonic() - began
        log = self.folder / "log.txt"
        if code:
            end = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
            raise RuntimeError(f"{self.method}, fold {self.number}: training ended with code {code}; see {log}:\n{end}")
        if not (self.folder / "eval" / "metrics.json").is_file():
            raise RuntimeError(
                f"{self.method}, fold {self.number}: the workflow {self.run_id!r} wrote no eval/metrics.json in "
                f"{self.folder}; see {log}"
            )
        write_text_atomically(self.folder / "fold.json", json.dumps({"seconds": seconds}) + "\n")
        return seconds


def _logged(command: list[str], log: Path, show: Callable[[str], None] | None) -> int:
    """Run a command with all it prints going to a file; lines, also those of progress bars, are shown as they come."""
    with log.open("wb") as file, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        rest = b""
        try:
            while chunk := process.stdout.read1(65536):  # type: ignore[attr-defined]
                file.write(chunk)
                file.flush()
                *lines, rest = re.split(rb"[\r\n]+", rest + chunk)
                for line in lines[-1:]:
                    if show is not None and line.strip():
                        show(line.decode("utf-8", "replace").strip())
        except BaseException:  # also Ctrl-C: no process outlives this one
            process.kill()
            raise
        return process.wait()

"""Time and memory of C-PIC beside the networks people use instead, on scans of several sizes.

Methods: ``cpic`` (default recipe ``closed_form``), ``cpic_paper`` (recipe ``paper``: index sets chosen scan by scan),
``resnet34`` (MONAI's, at its defaults), ``resnet34_strided`` (its first convolution strided 1 x 2 x 2, as in the ResNet
of the paper's code), ``tt_mlp`` (no encoder), ``scalar_ca`` (the encoding as one scalar tensor with binary channel
modes, given to ``tntorch.cross`` with the settings of the paper's code) and ``scalar_ca_paper`` (the same, and patches
are cut and encoded as in that code, too). The last two need tntorch: ``pip install -c constraints.txt -e ".[bench]"``.

Each measurement is a process of its own that imports what its method needs and nothing else, and methods take turns,
``--repeats`` rounds, so that a noisy machine is noisy for all. In a process the work is done once to warm up, then for
at least a second; its median counts, and of the rounds the median. A row:

``seconds_per_scan``  of one prediction or one training step (forward, backward, optimizer), a scan of the batch; or
                      ``out of memory`` or ``over N s``, which are results, too
``peak_mb``           peak resident memory (MiB) of the process, with Python, torch and all that was imported
``own_mb``            the part of it above what was resident after the imports, before any network or scan was made
``evaluations``       voxels encoded a scan (for scalar methods: values asked for, one channel each)

``--source file`` writes the scans as uncompressed NIfTI (int16) first; cpic methods then read patches from the files
within the measured time. Scans are noise: no method knows what it looks at, and time does not depend on it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench_peers_job import METHODS, PHASES, SOURCES, Job, default_batch, write_scan
from bench_table import markdown

OUT_OF_MEMORY = "out of memory"
#: What torch, oneDNN, NumPy and Python say where memory does not suffice.
SAID_SO = ("MemoryError", "DefaultCPUAllocator", "not enough memory", "bad_alloc", "Cannot allocate memory")
ROW = Path(__file__).with_name("bench_peers_row.py")
COLUMNS = ("method", "phase", "shape", "source", "batch", "seconds_per_scan", "peak_mb", "own_mb", "evaluations")
KEY = ("method", "phase", "shape", "source", "batch")


class RowError(RuntimeError):
    """A measurement ended for a reason that is no result."""


def in_own_process(job: Job, time_limit: float) -> dict[str, Any]:
    """One measurement in a fresh process; too much memory or time is an outcome like any other.

    Raises
    ------
    RowError
        With the end of what the process said, where it failed for another reason.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    command = [sys.executable, str(ROW), json.dumps(asdict(job))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=time_limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"seconds_per_scan": f"over {time_limit:g} s"}
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    # Killed (-9) by the kernel's out-of-memory killer, or refused memory by --memory_gb.
    if done.returncode == -9 or any(words in done.stderr for words in SAID_SO):
        return {"seconds_per_scan": OUT_OF_MEMORY}
    raise RowError(f"{job.method}, {job.phase}, {job.shape} failed:\n{done.stderr[-3000:]}")


def add(row: dict[str, Any], found: dict[str, Any]) -> None:
    """Let a round's measurement join its row: median of the times, largest memory; a failure ends the row."""
    if isinstance(found["seconds_per_scan"], str):
        row.update(found)
        return
    row["rounds"] = [*row.get("rounds", []), found["seconds_per_scan"]]
    row["seconds_per_scan"] = statistics.median(row["rounds"])
    row["evaluations"] = found["evaluations"]
    for name in ("peak_mb", "own_mb"):
        row[name] = max(row.get(name, 0.0), found[name])


def is_done(row: dict[str, Any], repeats: int) -> bool:
    """Whether a row has all its rounds or has failed."""
    return isinstance(row.get("seconds_per_scan"), str) or len(row.get("rounds", [])) >= repeats


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    return markdown(rows, COLUMNS, digits=4)


def jobs_of(given: argparse.Namespace) -> list[list[Job]]:
    """What to measure: one list a shape and phase, in which methods take turns."""
    groups = []
    for shape, phase in itertools.product(given.shapes, given.phases):
        jobs = []
        for method in given.methods:
            source = given.source if method.startswith("cpic") or method == "tt_mlp" else "dense"
            batch = given.batch or default_batch(method)
            jobs.append(Job(method, phase, shape, batch, source, given.threads, given.memory_gb))
        groups.append(jobs)
    return groups


def measure_all(given: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows; ``--json`` is written anew after every measurement."""
    kept = json.loads(given.json.read_text())["rows"] if given.resume and given.json.exists() else []
    rows = {tuple(row[n] for n in KEY): row for row in kept}
    start = time.monotonic()
    for jobs in jobs_of(given):
        with tempfile.TemporaryDirectory(prefix="bench_peers_", dir=given.folder) as folder:
            for turn, job in itertools.product(range(given.repeats), jobs):
                row = rows.setdefault(job.key, dict(zip(KEY, job.key, strict=True)))
                if is_done(row, given.repeats) or len(row.get("rounds", [])) > turn:
                    continue
                files = [write_scan(Path(folder), job.shape, n) for n in range(job.batch)] if job.from_files else []
                found = in_own_process(job.reading(files), given.time_limit)
                add(row, found)
                print(f"{time.monotonic() - start:7.0f} s  {' '.join(map(str, job.key))}: {found}", file=sys.stderr)
                if given.json:
                    save(given, list(rows.values()))
        print(table([rows[job.key] for job in jobs]) + "\n", flush=True)
    return list(rows.values())


def save(given: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Rows and what they were measured on, as JSON."""
    from cpic_monai.atomic import write_text_atomically

    versions = {name: version(name) for name in ("torch", "monai", "numpy")}
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "threads": given.threads, **versions}
    write_text_atomically(given.json, json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked.

    Raises
    ------
    SystemExit
        For an unknown method, phase or shape.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="cpic,resnet34,tt_mlp,scalar_ca", help=f"of {','.join(METHODS)}")
    parser.add_argument("--phases", default=",".join(PHASES), help=f"of {','.join(PHASES)}")
    parser.add_argument("--shapes", default="32x128x128,32x512x512", help="voxels, e.g. 32x512x512,64x1024x1024")
    parser.add_argument("--batch", type=int, help="scans a batch; default: 4, and 1 for ResNet and scalar_ca")
    parser.add_argument("--source", choices=SOURCES, default="dense", help="where cpic takes patches from")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads")
    parser.add_argument("--memory_gb", type=float, default=20.0, help="most memory (RLIMIT_DATA) of a process")
    parser.add_argument("--time_limit", type=float, default=600.0, help="seconds of a process, warm-up included")
    parser.add_argument("--json", type=Path, help="write the rows here, after every measurement")
    parser.add_argument("--resume", action="store_true", help="go on from the rows that --json holds")
    parser.add_argument("--folder", type=Path, help="where --source file writes its scans; default: temporary files")
    given = parser.parse_args(arguments)
    for name, known in (("methods", METHODS), ("phases", PHASES)):
        setattr(given, name, getattr(given, name).split(","))
        if wrong := sorted(set(getattr(given, name)) - set(known)):
            parser.error(f"--{name}: {wrong} not among {', '.join(known)}")
    given.shapes = given.shapes.split(",")
    if wrong := [s for s in given.shapes if len(s.split("x")) != 3 or not s.replace("x", "").isdigit()]:
        parser.error(f"--shapes: {wrong} are not like 32x512x512")
    if given.resume and not given.json:
        parser.error("--resume needs --json, the file to go on from")
    return given


if __name__ == "__main__":
    measure_all(parse())

"""One measurement of ``bench_peers``, in this process: takes a job as JSON, prints its outcome as JSON.

Run by ``bench_peers.py``; by hand: ``python scripts/bench_peers_row.py '{"method": "cpic", "phase": "predict",
"shape": "32x128x128", "batch": 4}'``.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from bench_peers_job import Job
from bench_peers_methods import load, reader

MOST_RUNS = 50


def memory_mb(entry: str) -> float:
    """``VmRSS`` (resident now) or ``VmHWM`` (its peak) of this process, MiB.

    Not getrusage: its peak starts at that of the process which started this one, and is kept over exec.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {entry}; memory is measured on Linux only")


def measure(job: Job) -> dict[str, Any]:
    """Median seconds a scan, peak memory (MiB) and evaluations a scan."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    build, read = load(job), reader(job)
    imported = memory_mb("VmRSS")
    work = build(read())
    work.run()
    runs: list[float] = []
    while not runs or (sum(runs) < job.seconds and len(runs) < MOST_RUNS):
        start = time.perf_counter()
        work.run()
        runs.append(time.perf_counter() - start)
    peak = memory_mb("VmHWM")
    return {
        "seconds_per_scan": statistics.median(runs) / job.batch,
        "peak_mb": peak,
        "own_mb": peak - imported,
        "evaluations": work.evaluations(),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", help="fields of a Job (bench_peers_job.py) as JSON")
    given = json.loads(parser.parse_args().job)
    job = Job(**{**given, "files": tuple(given.get("files", ()))})
    limit = int(job.memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    print(json.dumps(measure(job)))


if __name__ == "__main__":
    main()

"""Time and memory of C-PIC beside the networks people use instead, on scans of several sizes.

Each row is measured in a process of its own, methods in turn, so that a noisy machine is noisy for all. ``peak_mb`` is
the process's peak resident memory. ``out of memory`` is a result, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from monai.networks.nets import resnet34
from torch import nn

from cpic_monai.losses import PinballLoss
from cpic_monai.networks import CPICNet

METHODS = ("cpic", "resnet34", "tt_mlp")
PHASES = ("predict", "train")


def build(method: str, shape: tuple[int, ...]) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor], int]:
    """The network at the paper's OSIC settings, its forward on a dense batch, and voxels encoded a scan."""
    if method == "resnet34":
        net = resnet34(spatial_dims=3, n_input_channels=1, num_classes=3)
        return net, net, 0
    network = CPICNet(shape, encoder=method == "cpic", rank=10, channels=16)
    return network, network, len(network.voxels())


def measure(method: str, phase: str, shape: tuple[int, ...], batch: int, repeats: int) -> dict[str, object]:
    """Median seconds a scan over ``repeats``, peak memory and evaluations of one method in this process."""
    torch.manual_seed(0)
    image = torch.rand(batch, 1, *shape)
    network, forward, evaluations = build(method, shape)
    loss, optimizer = PinballLoss(), torch.optim.RAdam(network.parameters(), lr=1e-3)
    network.train(phase == "train")
    if isinstance(network, CPICNet):
        with torch.no_grad():
            network.basis.fit(network.decompose(image))
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        if phase == "predict":
            with torch.no_grad():
                forward(image)
        else:
            optimizer.zero_grad()
            loss(forward(image), torch.zeros(batch, 1)).backward()
            optimizer.step()
        seconds.append((time.perf_counter() - start) / batch)
    return {
        "method": method,
        "phase": phase,
        "shape": "x".join(map(str, shape)),
        "batch": batch,
        "seconds_per_scan": statistics.median(seconds[1:]),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "evaluations": evaluations,
    }


def in_own_process(method: str, phase: str, shape: str, given: argparse.Namespace) -> dict[str, object]:
    """One row from a fresh process; a process killed for memory gives the row ``out of memory``."""
    command = [sys.executable, __file__, "--row", method, phase, shape, "--repeats", str(given.repeats)]
    command += ["--threads", str(given.threads), "--memory_gb", str(given.memory_gb)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode == -9 or "not enough memory" in done.stderr or "MemoryError" in done.stderr:
        return {"method": method, "phase": phase, "shape": shape, "seconds_per_scan": "out of memory"}
    raise RuntimeError(f"{method}, {phase}, {shape} failed:\n{done.stderr[-2000:]}")


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    names = ("method", "phase", "shape", "batch", "seconds_per_scan", "peak_mb", "evaluations")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        values = [f"{row[n]:.3g}" if isinstance(row.get(n), float) else str(row.get(n, "")) for n in names]
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help=f"of {','.join(METHODS)}")
    parser.add_argument("--phases", default=",".join(PHASES), help=f"of {','.join(PHASES)}")
    parser.add_argument("--shapes", default="32x128x128,32x512x512", help="voxels, e.g. 32x512x512")
    parser.add_argument("--repeats", type=int, default=3, help="timed repetitions after a warm-up")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads")
    parser.add_argument("--memory_gb", type=float, default=20.0, help="address space a process may take")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--row", nargs=3, metavar=("METHOD", "PHASE", "SHAPE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.row:
        method, phase, shape = given.row
        limit = int(given.memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        size = tuple(int(n) for n in shape.split("x"))
        print(json.dumps(measure(method, phase, size, 1 if method == "resnet34" else 4, given.repeats)))
        return
    rows = []
    for shape in given.shapes.split(","):
        for phase in given.phases.split(","):
            rows += [in_own_process(method, phase, shape, given) for method in given.methods.split(",")]
            print(table(rows[-len(given.methods.split(",")) :]), flush=True)
    machine = {"processor": platform.machine(), "threads": given.threads, "torch": torch.__version__}
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Start processes that form a group, as ``torchrun`` or a cluster's scheduler does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}


def environment() -> dict[str, str]:
    """Of this process, without tracking settings of the machine, computing on one CPU core."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), kept.get("PYTHONPATH", "")])
    return {**kept, **THREADS, "PYTHONPATH": paths}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def members(arguments: Sequence[str], processes: int) -> list[subprocess.Popen[str]]:
    """``processes`` of ``python *arguments`` that know of each other, each started on its own."""
    port = str(free_port())
    started = []
    for rank in range(processes):
        group = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        started.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                env={**environment(), **group},
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    return started


def torchrun(run_id: str, configs: Sequence[str], log: Path, **overrides: Any) -> subprocess.Popen[bytes]:
    """Two processes of a bundle run; what they print goes to ``log``."""
    files = [f"configs/{name}.json" for name in configs]
    options = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        "-m", "monai.bundle", "run", run_id, "--config_file", str(files), "--logging_file", "configs/logging.conf",
    ]  # fmt: skip
    with log.open("wb") as file:
        return subprocess.Popen(
            [*command, *options], env=environment(), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )

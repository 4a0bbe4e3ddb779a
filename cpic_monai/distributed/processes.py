"""The process group: joining it, leaving it, and saying which process was lost."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import ParamSpec, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
REPORT_SECONDS = 3.0
_stores: list[dist.Store] = []


class LostProcessError(RuntimeError):
    """A collective operation did not come to an end because another process ended or hangs."""


def rank() -> int:
    """Number of this process, from 0; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_device() -> torch.device:
    """The GPU of this process (``LOCAL_RANK`` among those of its machine), or the CPU where there is none.

    Raises
    ------
    RuntimeError
        If the machine has fewer GPUs than processes.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= found:
        raise RuntimeError(
            f"process {number} of this machine has no GPU: {found} found; lower --nproc_per_node to that"
        )
    return torch.device("cuda", number)


def start(device: str | torch.device = "cpu", timeout_minutes: float = 30.0) -> None:
    """Join the process group that ``torchrun`` describes in the environment; nothing if already joined.

    NCCL connects GPUs, gloo CPUs. Processes other than the first log warnings and errors alone from here on.

    Parameters
    ----------
    device
        Of this process, see :func:`local_device`.
    timeout_minutes
        Longest wait for the other processes in one collective operation, after which the run ends with an error.

    Raises
    ------
    RuntimeError
        If the environment describes no process group.
    ValueError
        If the timeout is not positive.
    """
    if dist.is_initialized():
        return
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise RuntimeError(
            f"the environment lacks {', '.join(missing)}: start with `torchrun --standalone --nproc_per_node=2 "
            "-m monai.bundle run ...`, or leave the multi_gpu overlay out for one process"
        )
    if not timeout_minutes > 0:
        raise ValueError(f"`timeout_minutes` must be positive, found {timeout_minutes}")
    device, timeout = torch.device(device), timedelta(minutes=timeout_minutes)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, number, size = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    _stores[:] = [dist.PrefixStore("lost", store)]
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("group", store),
        rank=number,
        world_size=size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    # Ignite finds the group at its first question, by collective operations of its own: ask in all processes at once.
    idist.sync()
    logger.info(f"rank {number} of {size}: process {os.getpid()} on {socket.gethostname()}, {device}, {backend}")
    if number > 0:
        logging.getLogger().setLevel(logging.WARNING)


def stop() -> None:
    """Leave the process group, once all processes have come here."""
    if dist.is_initialized():
        barrier("end of the run")
        _stores.clear()
        idist.finalize()


def barrier(what: str) -> None:
    """Wait for all processes; ``what`` names the place in the error if one is lost."""
    if world_size() > 1:
        with together(what):
            dist.barrier()


def first(make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``make`` in the first process, then in the others, which find what it has written."""
    if rank() > 0:
        barrier("files that the first process makes")
        return make(*args, **kwargs)
    made = make(*args, **kwargs)
    barrier("files that the first process makes")
    return made


@contextmanager
def together(what: str) -> Iterator[None]:
    """Around a collective operation: names the place and the processes that are lost.

    Raises
    ------
    LostProcessError
    """
    try:
        yield
    except RuntimeError as error:
        logger.error(f"rank {rank()}: the other processes did not answer in '{what}': {error}")
        raise LostProcessError(
            f"rank {rank()} of {world_size()} waited in '{what}' for {_silent()}, which ended or hangs: see the first "
            "error in its log. The checkpoint last.pt holds the last whole epoch; go on from it with --resume True"
        ) from error


def _silent() -> str:
    """The processes that do not report a failure of their own within a few seconds."""
    if not _stores:
        return "another process"
    store, others = _stores[0], [n for n in range(world_size()) if n != rank()]
    try:
        store.set(str(rank()), "waited")
        time.sleep(REPORT_SECONDS)
        lost = [n for n in others if not store.check([str(n)])]
    except RuntimeError:  # the first process holds the store where torchrun does not
        return "rank 0"
    return f"rank {', '.join(map(str, lost))}" if lost else "another process"

"""What processes exchange: rows, tensor trains and objects to all, gradients, the first process's weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cpic_monai.distributed.dealing import dealt_order
from cpic_monai.distributed.processes import rank, together, world_size
from cpic_monai.tensor_train import TensorTrain

T = TypeVar("T")


def gather_rows(rows: Tensor, what: str = "rows") -> Tensor:
    """Rows of all processes ``(N, ...)`` in the order in which they were dealt, differentiable.

    Processes may hold different numbers of rows. The backward pass counts on every process computing the same loss from
    the rows gathered: it gives each process its own rows' gradient times the number of processes, without
    communication, so that gradients *averaged* over processes (:func:`average_gradients`) are those of one process:
    before the gather each process has its part of the sum, after it each has the whole.

    Raises
    ------
    ValueError
        If rows differ in size between processes.
    LostProcessError
        If a process is lost.
    """
    if world_size() == 1:
        return rows
    sizes = _sizes(rows, what)
    return _Gather.apply(rows, sizes, what)[dealt_order(sizes).to(rows.device)]


def gather_trains(trains: Sequence[TensorTrain]) -> list[TensorTrain]:
    """Tensor trains of all processes' scans, draw by draw, in the order in which they were dealt; differentiable.

    Raises are those of :func:`gather_rows`.
    """
    if world_size() == 1:
        return list(trains)
    out = []
    for train in trains:
        shapes = [core.shape[1:] for core in train.cores]
        flat = gather_rows(torch.cat([core.flatten(1) for core in train.cores], dim=1), "tensor trains")
        parts = flat.split([shape.numel() for shape in shapes], dim=1)
        out.append(TensorTrain(tuple(p.reshape(-1, *shape) for p, shape in zip(parts, shapes, strict=True))))
    return out


def gather_visits(rows: Mapping[str, Tensor], scans: int) -> dict[str, Tensor]:
    """Visits of all processes' scans, in the order of the scans that :func:`gather_trains` gives.

    Parameters
    ----------
    rows
        Name to values ``(R, ...)`` a visit, among them ``scan_index`` int64 ``(R,)``, numbered within this process.
    scans
        Scans of this process.

    Returns
    -------
    dict
        The same of all processes; ``scan_index`` counts all scans.
    """
    if world_size() == 1:
        return dict(rows)
    index = rows["scan_index"]
    held = _sizes(index.new_zeros(scans), "scans")
    numbers = dealt_order(held).argsort().to(index.device)  # of the scans, process by process
    everywhere = {**rows, "scan_index": numbers[sum(held[: rank()]) + index]}
    sizes = _sizes(index, "visits")
    gathered = {key: _Gather.apply(value, sizes, f"visits ({key})") for key, value in everywhere.items()}
    order = gathered["scan_index"].argsort(stable=True)
    return {key: value[order] for key, value in gathered.items()}


def gather_objects(item: T) -> list[T]:
    """One object of every process, by rank."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    with together("exchange of objects"):
        dist.all_gather_object(items, item)
    return items


def gather_scans(mine: Sequence[T]) -> list[T]:
    """What every process has of the scans dealt to it, one thing a scan, back in the order of the split."""
    parts = gather_objects(list(mine))
    scans = [scan for part in parts for scan in part]
    return [scans[place] for place in dealt_order([len(part) for part in parts]).tolist()]


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over all processes, in one message for each type of number.

    Which parameters have a gradient is the same in all processes, since they all compute the same loss.
    """
    if world_size() == 1:
        return
    buckets: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            buckets[parameter.grad.dtype].append(parameter.grad)
    for gradients in buckets.values():
        flat = torch.cat([g.flatten() for g in gradients]).to(_device())
        with together("gradients"):
            dist.all_reduce(flat)
        flat /= world_size()
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.reshape(gradient.shape))


@torch.no_grad()
def broadcast_module(module: nn.Module) -> None:
    """Give parameters and buffers of every process the first one's values, bit for bit.

    Raises
    ------
    ValueError
        If they differ in size between processes.
    """
    tensors = [*module.parameters(), *module.buffers()]
    if world_size() == 1 or not tensors:
        return
    # As bytes: one message whatever the types, booleans among them, which not every backend sends.
    # Each goes to the device by itself: index sets stay on the CPU where the weights do not.
    parts = [tensor.detach().to(_device()).contiguous().reshape(-1).view(torch.uint8) for tensor in tensors]
    flat = torch.cat(parts)
    _sizes(flat[None], type(module).__name__)
    with together(f"state of {type(module).__name__}"):
        dist.broadcast(flat, src=0)
    for tensor, part in zip(tensors, flat.split([len(p) for p in parts]), strict=True):
        tensor.copy_(part.clone().view(tensor.dtype).reshape(tensor.shape))


class _Gather(torch.autograd.Function):
    """Rows of all processes, process by process; see :func:`gather_rows` for the gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], what: str) -> Tensor:
        """``sizes`` are the rows of every process."""
        ctx.start, ctx.size = sum(sizes[: rank()]), sizes[rank()]
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]), device=_device())
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        with together(what):
            dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(rows.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Of this process's own rows."""
        return gradients[0].narrow(0, ctx.start, ctx.size) * world_size(), None, None


def _sizes(rows: Tensor, what: str) -> list[int]:
    """Rows of every process, each of which must have as many values as elsewhere."""
    mine = torch.tensor([len(rows), rows[:1].numel()], device=_device())
    found = [torch.empty_like(mine) for _ in range(world_size())]
    with together(f"sizes of {what}"):
        dist.all_gather(found, mine)
    widths = {n: int(pair[1]) for n, pair in enumerate(found) if int(pair[0])}
    if len(set(widths.values())) > 1:
        raise ValueError(f"{what} differ in values a row between processes, by rank {widths}: do they run one config?")
    return [int(pair[0]) for pair in found]


def _device() -> torch.device:
    """Where the backend wants its messages: NCCL on the GPU, gloo on the CPU."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")

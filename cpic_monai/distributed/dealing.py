"""Which process gets which scans: dealt like cards, so that what is gathered can be put back into the order it had."""

from __future__ import annotations

from collections.abc import Sequence, Sized

import torch
from torch import Tensor

from cpic_monai.distributed.processes import rank, world_size


def deal(dataset: Sized, least: int = 0) -> range:
    """A loader's sampler: numbers of this process's scans, every ``world_size``-th from ``rank`` on, none twice.

    Unlike a sampler that evens the shares out by repeating scans, it leaves metrics what they are in one process.

    Parameters
    ----------
    dataset
        All scans of the split.
    least
        Scans that every process needs: 1 where it computes metrics or the basis.

    Raises
    ------
    ValueError
        If there are too few scans.
    """
    if len(dataset) < least * world_size():
        raise ValueError(
            f"{len(dataset)} scans of a split cannot be dealt to {world_size()} processes, each of which needs "
            f"{least}: start fewer processes, or hold more scans out (`validation_fraction`)"
        )
    return range(rank(), len(dataset), world_size())


def share(batch_size: int) -> int:
    """Scans of one process in a step of ``batch_size`` scans over all processes.

    Raises
    ------
    ValueError
        If the batch cannot be divided evenly.
    """
    each, rest = divmod(batch_size, world_size())
    if rest or not each:
        low, high = each * world_size(), (each + 1) * world_size()
        raise ValueError(
            f"`batch_size` {batch_size} is not a multiple of the {world_size()} processes: take "
            f"{f'{low} or ' if low else ''}{high}"
        )
    return each


def dealt_order(sizes: Sequence[int]) -> Tensor:
    """Undo the dealing: the order int64 ``(sum(sizes),)`` in which to take rows that lie process by process."""
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    turn = torch.cat([torch.arange(size) for size in sizes])
    return (turn * len(sizes) + owner).argsort()

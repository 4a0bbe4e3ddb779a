"""Index sets by subject, known to every process: a subject's next visit may be dealt to another one."""

from __future__ import annotations

from torch import Tensor

from cpic_monai.cross.bank import ScanIndexSets
from cpic_monai.distributed import gather_objects, world_size
from cpic_monai.networks import CPICNet


def share_index_sets(network: CPICNet) -> None:
    """Give every process the index sets of all subjects; nothing to do unless each scan has its own.

    Where a subject was first seen by several processes in one epoch, the set of the lowest rank stays.
    """
    sets = network.indices
    if world_size() == 1 or not isinstance(sets, ScanIndexSets):
        return
    merged: dict[str, Tensor] = {}
    for seeds in gather_objects({subject: codes.cpu() for subject, codes in sets.seeds.items()}):
        merged = {**seeds, **merged}
    sets.seeds = dict(sorted(merged.items()))

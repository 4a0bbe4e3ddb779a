"""Several processes (GPUs, machines) that train or evaluate together; every function also does right in one process.

The encoder is the work, tensor trains are small. So each process encodes the scans dealt to it, the trains are
gathered, and everything after them (Gram matrix, basis, head, loss, metrics) is computed on all scans in every process.
"""

from cpic_monai.distributed.dealing import deal, dealt_order, share
from cpic_monai.distributed.gather import (
    average_gradients,
    broadcast_module,
    gather_objects,
    gather_rows,
    gather_scans,
    gather_trains,
    gather_visits,
)
from cpic_monai.distributed.processes import (
    LostProcessError,
    barrier,
    first,
    local_device,
    rank,
    start,
    stop,
    world_size,
)

__all__ = [
    "LostProcessError",
    "average_gradients",
    "barrier",
    "broadcast_module",
    "deal",
    "dealt_order",
    "first",
    "gather_objects",
    "gather_rows",
    "gather_scans",
    "gather_trains",
    "gather_visits",
    "local_device",
    "rank",
    "share",
    "start",
    "stop",
    "world_size",
]

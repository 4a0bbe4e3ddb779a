"""A byte-bounded, least-recently-used store of blocks, one a process."""

from __future__ import annotations

import threading
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

_OF_THIS_PROCESS: WeakValueDictionary[str, BlockCache] = WeakValueDictionary()
_SHARED: list[BlockCache] = []
DEFAULT_BYTES = 1 << 30


class BlockCache:
    """Keeps the blocks that were used last, up to ``max_bytes``.

    A cache is local to its process. It pickles without its blocks; what is unpickled in a loader worker is that
    worker's own cache, one for all scans that shared the original, so the bound holds per process and not per scan.
    (Unpickled or copied within one process it is therefore the very same cache.)

    Parameters
    ----------
    max_bytes
        Most bytes of blocks held. A block larger than this is handed out but not kept, with a warning.

    Attributes
    ----------
    hits, misses
        How often a block was found, or had to be loaded.
    bytes_read
        Bytes of all blocks loaded.
    nbytes
        Bytes held now.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES, _token: str | None = None) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes is {max_bytes}; a cache holds 0 bytes or more.")
        self.max_bytes = int(max_bytes)
        self.hits = 0
        self.misses = 0
        self.bytes_read = 0
        self.nbytes = 0
        self._blocks: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._kept: dict[Hashable, np.ndarray] = {}
        self._lock = threading.RLock()
        self._warned = False
        self._token = _token or uuid.uuid4().hex
        _OF_THIS_PROCESS[self._token] = self

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._blocks

    def get(self, key: Hashable, load: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the block named ``key``, calling ``load`` where it is not held. Do not write into it."""
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self.hits += 1
                self._blocks.move_to_end(key)
                return block
            block = load()
            block.setflags(write=False)
            self.misses += 1
            self.bytes_read += block.nbytes
            if block.nbytes > self.max_bytes:
                if not self._warned:
                    warnings.warn(
                        f"Block {key!r} takes {block.nbytes} bytes, more than the cache's max_bytes = "
                        f"{self.max_bytes}: it is read anew each time. Raise max_bytes, or convert the "
                        "scan to an uncompressed .nii.",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                    self._warned = True
                return block
            self._blocks[key] = block
            self.nbytes += block.nbytes
            while self.nbytes > self.max_bytes:
                _, dropped = self._blocks.popitem(last=False)
                self.nbytes -= dropped.nbytes
            return block

    def keep(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return a small result (a sampled statistic) that is made once and never dropped. Do not write into it."""
        with self._lock:
            if key not in self._kept:
                value = make()
                value.setflags(write=False)
                self._kept[key] = value
            return self._kept[key]

    def clear(self) -> None:
        """Forget all blocks and kept results; the counters stay."""
        with self._lock:
            self._blocks.clear()
            self._kept.clear()
            self.nbytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return (_of_this_process, (self._token, self.max_bytes))

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockCache:
        return self

    def __repr__(self) -> str:
        counts = f"{len(self)} blocks, {self.hits} hits, {self.misses} misses"
        return f"BlockCache({self.nbytes}/{self.max_bytes} bytes, {counts})"


def _of_this_process(token: str, max_bytes: int) -> BlockCache:
    held = _OF_THIS_PROCESS.get(token)
    return BlockCache(max_bytes, _token=token) if held is None else held


def shared_cache() -> BlockCache:
    """The process's default cache (1 GiB), used where no other is given."""
    if not _SHARED:
        _SHARED.append(_of_this_process("shared", DEFAULT_BYTES))
    return _SHARED[0]

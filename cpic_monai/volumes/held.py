"""Files that can only be decoded as a whole (.nii.gz, compressed NRRD): decoded on first use, held by the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cpic_monai.volumes.cache import BlockCache, shared_cache
from cpic_monai.volumes.protocol import MappedVolume


class HeldVolume(MappedVolume):
    """A volume whose stored values come all at once from ``load``; the cache bounds how many such scans are held."""

    def __init__(self, *header: Any, cache: BlockCache | None = None) -> None:
        super().__init__(*header)
        self.cache = cache if cache is not None else shared_cache()

    def load(self) -> np.ndarray:
        """Return all stored values, (shape)."""
        raise NotImplementedError(f"{type(self).__name__} must define load()")

    def mapped(self) -> np.ndarray:
        """The stored values, decoded from the file where the cache does not hold them."""

        def counted() -> np.ndarray:
            stored = self.load()
            self.bytes_read += stored.nbytes
            return stored

        return self.cache.get((self.identity, "held"), counted)

    def read(self, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """See :meth:`Volume.read`; ``bytes_read`` counts whole decodings."""
        (a0, a1, a2), (b0, b1, b2) = self.check_box(start, stop)
        return self.decode(np.array(self.mapped()[a0:b0, a1:b1, a2:b2]))

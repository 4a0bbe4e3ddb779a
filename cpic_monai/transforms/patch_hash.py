"""Names of cached patches: a cache answers only for the voxels and the settings that its patches were read at."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cpic_monai.transforms.by_value import feed


class PatchHash:
    """``hash_func`` of MONAI's ``PersistentDataset`` for items whose last transform is SamplePatchesd.

    MONAI names what it keeps by the item alone, so that patches of earlier voxels would be taken for those of the
    present ones; and its own hashes of an item with tensors are others in every process, so that a second run finds
    nothing. This one is of the item, the voxels looked at now, and the settings, by value.

    Parameters
    ----------
    indices
        As SamplePatchesd has them; None where whole scans are read.
    settings
        What else patches depend on, see :func:`~cpic_monai.transforms.by_value.feed`.

    Raises
    ------
    ValueError
        If ``indices`` have no voxels before the network has seen the scan.
    """

    def __init__(self, indices: Any, settings: Any = ()) -> None:
        if indices is not None and not hasattr(indices, "voxels"):
            raise ValueError(
                f"nothing to cache: with {type(indices).__name__} (`index_sets: scan`) the network asks for patches "
                "during its sweep, and none are sampled before; leave configs/cache.json out"
            )
        self.indices, self.settings = indices, settings

    def __call__(self, item: Mapping[str, Any]) -> bytes:
        """64 hexadecimal digits."""
        voxels = None if self.indices is None else self.indices.voxels(item.get("subject"))
        digest = hashlib.sha256()
        feed(digest, [item, voxels, self.settings])
        return digest.hexdigest().encode()

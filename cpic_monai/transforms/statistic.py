"""A deterministic sample of a scan's values, for statistics that never read the whole scan."""

from __future__ import annotations

import numpy as np

from cpic_monai.volumes import CachedVolume

#: From how many blocks (DICOM slices, say) a sample is taken at most: enough for a mean, and few to read.
MOST_BLOCKS = 16
SEED = 20210817


def sample_values(volume: CachedVolume, n: int, seed: int = SEED) -> np.ndarray:
    """Return ``n`` values, float32, at random voxels of a scan; the same ones each time, and kept by its cache.

    Voxels are drawn anywhere in a scan that can be mapped, else within 16 blocks spread evenly over the block grid.
    """

    def draw() -> np.ndarray:
        generator = np.random.default_rng(seed)
        shape = np.array(volume.shape)
        if volume.is_mapped:
            voxels = generator.integers(0, shape, (n, 3))
        else:
            grid = np.array(volume.grid)
            count = min(MOST_BLOCKS, int(grid.prod()))
            # One block out of each of `count` equal parts, so that a thin series is seen from end to end.
            edges = np.linspace(0, int(grid.prod()), count + 1)
            ids = np.minimum(generator.uniform(edges[:-1], edges[1:]).astype(np.int64), int(grid.prod()) - 1)
            index = np.column_stack(np.unravel_index(np.sort(generator.choice(ids, n)), volume.grid))
            low = index * volume.block_shape
            voxels = generator.integers(low, np.minimum(low + volume.block_shape, shape))
        return volume.boxes(voxels, (1, 1, 1)).reshape(n).astype(np.float32)

    return volume.cache.keep((volume.identity, "sample", n, seed), draw)

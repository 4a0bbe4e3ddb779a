"""Loader workers fetch the patches of the next batches at the voxels that hold for their epoch."""

from __future__ import annotations

import pickle

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset

from cpic_monai.cross.bank import CohortIndexSets
from cpic_monai.grid import IndexGrid
from cpic_monai.networks import CPICNet
from cpic_monai.transforms import LazyCompose, LoadVolumed, SamplePatchesd, VirtualScand

SHAPE = (8, 16, 8)


@pytest.fixture
def path(tmp_path):
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "scan.nii")
    return str(tmp_path / "scan.nii")


def choose(indices: CohortIndexSets, seed: int) -> None:
    """New index sets, as a handler makes them between epochs."""
    generator = torch.Generator().manual_seed(seed)
    indices.select(
        lambda codes: torch.randn((1, codes.shape[1], 2), generator=generator, dtype=torch.float64),
        [torch.randint(0, 1024, (3,), generator=generator)],
        generator,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_reads_at_the_index_sets_chosen_at_its_start(path, workers):
    indices = CohortIndexSets(IndexGrid(SHAPE), rank=3, channels=2)
    chain = LazyCompose([LoadVolumed("image"), VirtualScand("image"), SamplePatchesd("image", indices, 3)])
    items = [{"image": path, "subject": str(n)} for n in range(4)]
    ahead = {"prefetch_factor": 2, "timeout": 300} if workers else {}
    loader = DataLoader(Dataset(items, chain), batch_size=2, num_workers=workers, **ahead)
    seen: list[torch.Tensor] = []
    wanted: list[torch.Tensor] = []
    scan = LazyCompose([LoadVolumed("image"), VirtualScand("image")])(items[0])["image"]

    def step(engine: Engine, batch: dict) -> None:
        assert torch.equal(batch["image"][0], batch["image"][1])
        seen.append(batch["image"][0])
        wanted.append(scan.patches(indices.voxels(), 3))

    engine = Engine(step)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda e: choose(indices, e.state.epoch))
    engine.run(loader, max_epochs=3)
    assert len(seen) == 6
    for found, expected in zip(seen, wanted, strict=True):
        assert torch.equal(found, expected)
    assert len({tuple(p.flatten()[:500].tolist()) for p in seen}) == 3, "three epochs, three choices"


def test_workers_get_the_index_sets_and_not_the_network():
    network = CPICNet((32, 128, 128), draws=3, features=(200, 200, 200))
    weights = sum(p.numel() * 4 for p in network.parameters())
    pickled = pickle.dumps(SamplePatchesd("image", network.indices, network.patch_size))
    assert len(pickled) < 400_000 < weights / 10
    again = pickle.loads(pickled).indices.voxels("anyone")
    assert torch.equal(again, network.voxels())
    assert len(again) > 3000

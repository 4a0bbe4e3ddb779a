"""Index sets of the cohort, of each scan, and every voxel; what a checkpoint holds of them."""

from __future__ import annotations

import io
import pickle
import re

import pytest
import torch
from random_trains import evaluator, random_train

from cpic_monai.cross import Ridge
from cpic_monai.cross.bank import CohortIndexSets, EveryVoxel, ScanIndexSets
from cpic_monai.grid import IndexGrid
from cpic_monai.tensor_train import tt_svd

GRID = IndexGrid((4, 8, 8))
RANK, CHANNELS = 3, 2
EXACT = Ridge(relative=1e-14, floor=0.0, refinements=2)
TRUE = random_train(GRID.mode_sizes, RANK, CHANNELS, batch=2, seed=9)


def selected(draws: int = 2) -> CohortIndexSets:
    sets = CohortIndexSets(GRID, RANK, CHANNELS, ridge=EXACT)
    generator = torch.Generator().manual_seed(3)
    seeds = [torch.randint(0, 256, (RANK,), generator=generator) for _ in range(draws)]
    sets.select(evaluator(TRUE, GRID), seeds, generator)
    return sets


def test_every_draw_recovers_the_trains() -> None:
    sets = selected(draws=3)
    assert sets.draws == len(sets.plans) == 3
    voxels = sets.voxels()
    assert voxels.shape == (len(sets.codes()), 3)
    trains = sets.decompose(evaluator(TRUE, GRID)(sets.codes()[None]))
    assert len(trains) == 3
    for train in trains:
        torch.testing.assert_close(train.full(), TRUE.full(), rtol=1e-8, atol=1e-8)


def test_first_sets_depend_on_the_seed_alone() -> None:
    first, again, other = (CohortIndexSets(GRID, RANK, CHANNELS, draws=2, seed=s).codes() for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_checkpoint_with_another_number_of_draws() -> None:
    sets, other = selected(draws=3), CohortIndexSets(GRID, RANK, CHANNELS, draws=1, seed=8, ridge=EXACT)
    other.codes()  # plans made before loading must not survive it
    file = io.BytesIO()
    torch.save(sets.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.draws == 3
    assert torch.equal(other.codes(), sets.codes())
    values = evaluator(TRUE, GRID)(sets.codes()[None])
    for a, b in zip(other.decompose(values), sets.decompose(values), strict=True):
        assert torch.equal(a.full(), b.full())


def test_checkpoint_of_another_rank_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        CohortIndexSets(GRID, RANK + 1, CHANNELS).load_state_dict(selected().state_dict())


def test_values_of_other_index_sets_are_refused() -> None:
    sets = selected()
    count = len(sets.codes())
    with pytest.raises(ValueError, match=f"{count - 1} values a scan for {count} cross indices"):
        sets.decompose(torch.zeros(1, count - 1, CHANNELS).double())
    with pytest.raises(ValueError, match="found 0 and 3"):
        CohortIndexSets(GRID, RANK, CHANNELS, draws=0)


def test_every_voxel_is_the_tt_svd() -> None:
    sets = EveryVoxel(GRID, 2)
    dense = torch.randn(2, *GRID.shape, CHANNELS, dtype=torch.float64)
    voxels = sets.voxels()
    assert len(voxels) == 256
    (train,) = sets.decompose(dense[(slice(None), *voxels.T)])
    torch.testing.assert_close(train.full(), tt_svd(GRID.unfold(dense), 2).full(), rtol=1e-12, atol=1e-12)


def test_own_index_sets_recover_each_scan_and_keep_their_seeds() -> None:
    sets = ScanIndexSets(GRID, RANK, CHANNELS, ridge=EXACT)
    (train,), indices = sets.sweep(evaluator(TRUE, GRID), torch.tensor([[1, 2, 200], [7, 90, 33]]))
    torch.testing.assert_close(train.full(), TRUE.full(), rtol=1e-8, atol=1e-8)
    assert indices.groups == 2
    seeds = {"a": torch.tensor([1, 2]), "b": torch.tensor([3, 4])}
    for name, codes in seeds.items():
        assert sets.keep(name, codes) is codes
        assert sets.keep(name, codes + 1) is codes, "the first ones stay"
    sets.draw = 5
    other = ScanIndexSets(GRID, RANK, CHANNELS, seed=9)
    other.load_state_dict(sets.state_dict())
    assert other.kept(["b", "a"]).tolist() == [[3, 4], [1, 2]]
    assert other.kept(["a", "nobody"]) is None
    assert other.kept([]) is None
    assert (other.draw, other.seed) == (5, 0), "those of other scans follow from these"
    other.forget(["a", "nobody"])
    assert other.kept(["a"]) is None
    assert other.kept(["b"]).tolist() == [[3, 4]]
    other.forget()
    assert not other.seeds
    assert len(sets.seeds) == 2
    for draw, older in ((0, seeds), (3, {"draw": 3, "seeds": seeds})):
        other.set_extra_state(older)  # checkpoints that hold names
        assert (other.draw, other.kept(["a", "b"]).tolist()) == (draw, [[1, 2], [3, 4]])


def test_a_checkpoint_names_nobody() -> None:
    sets = ScanIndexSets(GRID, RANK, CHANNELS)
    sets.set_extra_state({"draw": 0, "seeds": {"John-Doe-1970": torch.tensor([3, 4])}})  # as once
    sets.keep("Anna-Smith-1961", torch.tensor([1, 2]))
    for kept in (sets.state_dict(), pickle.dumps(sets)):
        assert not re.search("Anna|Smith|John|Doe", str(kept))

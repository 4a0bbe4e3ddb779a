"""The interpolation that all scans share: exact where scans share a low-rank space, linear, and saved with the sets."""

import pytest
import torch
from torch import Tensor

from cpic_monai.cross.kinds import make_index_sets
from cpic_monai.cross.tangent import TangentIndexSets, shared_interpolation, weighted_values
from cpic_monai.grid import IndexGrid
from cpic_monai.tensor_train import inner

SHAPE, CHANNELS, SCANS = (8, 16, 8), 3, 9


def encodings(terms: int, noise: float = 0.0, seed: int = 0) -> Tensor:
    """Scans ``(B, *SHAPE, C)`` in one space of ``terms`` exponentials, whose rank at every bond is ``terms``."""
    g = torch.Generator().manual_seed(seed)
    grid = torch.cartesian_prod(*(torch.linspace(0, 1, n, dtype=torch.float64) for n in SHAPE))
    decay = 4 * torch.rand((3, terms), generator=g, dtype=torch.float64) - 2
    weight = torch.randn((SCANS, terms, CHANNELS), generator=g, dtype=torch.float64)
    values = torch.einsum("va,bac->bvc", (grid @ decay).exp(), weight)
    values = values + noise * torch.randn(values.shape, generator=g, dtype=torch.float64)
    return values.reshape(SCANS, *SHAPE, CHANNELS)


def chosen(values: Tensor, rank: int = 5, draws: int = 2, unfolding: str = "interleaved") -> TangentIndexSets:
    grid = IndexGrid(SHAPE, unfolding)
    sets = make_index_sets("tangent", grid, rank, CHANNELS, draws)
    assert isinstance(sets, TangentIndexSets)
    g = torch.Generator().manual_seed(1)
    limit = torch.tensor(SHAPE)
    seeds = [grid.encode((torch.rand((rank, 3), generator=g) * limit).long()) for _ in range(draws)]
    sets.select(lambda codes: at(values, sets, codes[0]), seeds, g)
    return sets


def at(values: Tensor, sets: TangentIndexSets, codes: Tensor) -> Tensor:
    i, j, k = sets.grid.decode(codes).T
    return values[:, i, j, k]


def gram(sets: TangentIndexSets, values: Tensor) -> Tensor:
    trains = sets.decompose(at(values, sets, sets.codes()))
    return torch.stack([inner(t, t) for t in trains]).mean(0)


def voxel_weights(sets: TangentIndexSets, draw: int) -> Tensor:
    """The matrix ``W`` of the inner product ``e_i^T W e_j``, ``(N, N)``, by the formula: the mean over all centres."""
    plan, shared = sets.plans[draw], sets.shared(draw)
    weights = torch.zeros((plan.codes.shape[1],) * 2, dtype=torch.float64)
    for table, left, right in zip(plan.gather, shared.left, shared.right, strict=True):
        places = table[0].flatten()
        # A digit of the mode meets itself only.
        block = torch.kron(torch.kron(left, torch.eye(table.shape[2], dtype=left.dtype)), right)
        weights.index_put_((places[:, None], places[None, :]), block / len(plan.gather), accumulate=True)
    return weights


@pytest.mark.parametrize("unfolding", ["interleaved", "tt", "fused"])
def test_inner_products_are_those_of_whole_encodings_in_a_common_low_rank_space(unfolding: str) -> None:
    values = encodings(terms=3)
    dense = values.flatten(1) @ values.flatten(1).T
    found = gram(chosen(values, unfolding=unfolding), values)
    assert float((found - dense).norm() / dense.norm()) < 0.02
    # With fewer pivots than the space has dimensions it cannot be.
    poor = gram(chosen(values, rank=1, unfolding=unfolding), values)
    assert float((poor - dense).norm() / dense.norm()) > 0.05


def test_scans_it_was_not_fitted_to_are_interpolated_as_well() -> None:
    values = encodings(terms=3)
    sets = chosen(values[:6])
    new = values[6:]
    dense = new.flatten(1) @ new.flatten(1).T
    assert float((gram(sets, new) - dense).norm() / dense.norm()) < 0.02


def test_features_are_linear_in_the_encoding() -> None:
    values = encodings(terms=8, noise=0.1)
    sets = chosen(values, draws=1)
    picked = at(values, sets, sets.codes())
    a, b, mixed = (sets.decompose(v)[0].full() for v in (picked[:1], picked[1:2], 2 * picked[:1] - 3 * picked[1:2]))
    torch.testing.assert_close(mixed, 2 * a - 3 * b)
    assert mixed.shape == (1, sets.mode_sizes[0], CHANNELS)
    weights = voxel_weights(sets, 0)
    torch.testing.assert_close(
        inner(*sets.decompose(picked) * 2), torch.einsum("anc,nm,bmc->ab", picked, weights, picked)
    )


def test_values_come_back_from_weighted_ones() -> None:
    values = encodings(terms=8, noise=0.1)
    sets = chosen(values)
    for draw, (part, train) in enumerate(
        zip(sets.split(at(values, sets, sets.codes())), sets.decompose(at(values, sets, sets.codes())), strict=True)
    ):
        weighted = train.full()[0]
        found = sets.unweighted(draw, weighted)
        # Where the weights have a null space only what counts can come back.
        again = weighted_values(found[None], sets.plans[draw], sets.shared(draw))[0]
        torch.testing.assert_close(again, weighted, rtol=1e-5, atol=1e-5)
        assert float((found - part[0]).norm() / part[0].norm()) < 1


def test_scans_of_air_give_zeros_and_finite_gradients() -> None:
    sets = chosen(torch.zeros(SCANS, *SHAPE, CHANNELS, dtype=torch.float64))
    picked = torch.zeros(2, len(sets.codes()), CHANNELS, dtype=torch.float64, requires_grad=True)
    trains = sets.decompose(picked)
    total = sum(inner(t, t).sum() for t in trains)
    total.backward()
    assert float(total.detach()) == 0
    assert torch.isfinite(picked.grad).all()


def test_interpolation_is_saved_with_the_sets() -> None:
    values = encodings(terms=4, noise=0.05)
    sets = chosen(values, draws=3)
    other = make_index_sets("tangent", sets.grid, 5, CHANNELS, draws=1, seed=7)
    other.load_state_dict(sets.state_dict())
    assert other.draws == 3
    torch.testing.assert_close(gram(other, values), gram(sets, values))
    assert [sets.shared(0).left[0].shape, sets.shared(0).right[-1].shape] == [(1, 1), (1, 1)]
    shared = shared_interpolation(at(values, sets, sets.plans[1].codes[0]), sets.plans[1])
    for saved, fitted in zip(sets.shared(1).right, shared.right, strict=True):
        torch.testing.assert_close(saved, fitted)

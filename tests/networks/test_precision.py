"""Lower precision of encoder and algebra, and factorisation without waiting for a GPU."""

from __future__ import annotations

import pytest
import torch
from scans import SHAPE

from cpic_monai.cross.bank import ScanIndexSets
from cpic_monai.cross.interpolation import Ridge, _cholesky, cholesky_without_waiting
from cpic_monai.cross.kinds import INDEX_SETS
from cpic_monai.grid import IndexGrid
from cpic_monai.networks import CPICNet
from cpic_monai.networks.basis import mean_inner


@pytest.mark.parametrize("index_sets", INDEX_SETS)
@pytest.mark.parametrize("options", [{"algebra": "float32"}, {"amp": True}], ids=["float32", "amp"])
def test_lower_precision_gives_nearly_the_same_gram_matrix_and_gradients(options: dict, index_sets: str) -> None:
    coarse = torch.rand(4, 1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(coarse, SHAPE, mode="trilinear")  # smooth: well-conditioned crosses
    grams, gradients = [], []
    for given in ({}, options):
        torch.manual_seed(0)
        net = CPICNet(SHAPE, rank=4, channels=6, features=(5, 8, 8), index_sets=index_sets, **given)
        trains = net.decompose(image)
        wanted = torch.float32 if "algebra" in given else torch.float64
        assert {core.dtype for train in trains for core in train.cores} == {wanted}
        gram = mean_inner(trains, trains)
        gram.diagonal().sum().backward()
        grams.append(gram.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in net.encoder.parameters()]))
    assert grams[1].dtype == torch.float64
    # bfloat16 keeps 8 bits; float32 algebra loses what its wider ridge takes.
    assert torch.allclose(grams[0], grams[1], rtol=0.05, atol=0.05 * float(grams[0].abs().max()))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.parametrize("settings", [{}, {"oversampling": 1.5}, {"alternations": 1}], ids=str)
def test_sets_of_each_scan_are_chosen_and_interpolated_in_the_precision_asked_for(settings: dict) -> None:
    grid, generator = IndexGrid(SHAPE), torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 6, 2, 2, 2, generator=generator)
    dense = torch.nn.functional.interpolate(coarse, SHAPE, mode="trilinear")  # far from any tie between pivots

    def evaluate(codes: torch.Tensor) -> torch.Tensor:
        i, j, k = grid.decode(codes.expand(2, -1)).clamp(max=torch.tensor(SHAPE) - 1).unbind(-1)
        return dense.movedim(1, -1)[torch.arange(2)[:, None], i, j, k]

    ridge = Ridge(relative=1e-5, floor=1e-7)
    seeds = torch.randint(SHAPE[0] * SHAPE[1] * SHAPE[2], (2, 3), generator=generator)
    sets = ScanIndexSets(grid, 3, 6, ridge, **settings)
    (fine,), _ = sets.sweep(evaluate, seeds)
    (train,), _ = sets.sweep(evaluate, seeds, dtype=torch.float32)
    assert {core.dtype for core in fine.cores} == {torch.float64}
    assert {core.dtype for core in train.cores} == {torch.float32}
    torch.testing.assert_close(train.full().double(), fine.full(), rtol=0, atol=1e-3 * float(fine.full().abs().max()))


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="float16"):
        CPICNet((8, 16, 16), algebra="float16")


def test_factor_without_a_branch_on_data_is_the_same() -> None:
    root = torch.randn(5, 4, 4, dtype=torch.float64)
    matrix = root @ root.transpose(1, 2) + 0.1 * torch.eye(4)
    matrix[2] = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1e-10]))  # indefinite by rounding
    factor = cholesky_without_waiting(matrix)
    torch.testing.assert_close(factor[[0, 1, 3, 4]], _cholesky(matrix[[0, 1, 3, 4]]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(factor[2] @ factor[2].T, matrix[2], rtol=1e-8, atol=1e-8)


def test_jitter_is_beyond_the_rounding_of_the_precision() -> None:
    matrix = torch.tensor([[1.0, 1 + 1e-6], [1 + 1e-6, 1.0]])[None]
    for factor in (_cholesky(matrix), cholesky_without_waiting(matrix)):
        torch.testing.assert_close(factor @ factor.transpose(1, 2), matrix, rtol=2e-3, atol=2e-3)


def test_what_jitter_does_not_help_is_no_number() -> None:
    matrix = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)).expand(2, 2, 2).clone()
    matrix[0] = torch.eye(2)
    factor = cholesky_without_waiting(matrix)
    assert torch.equal(factor[0], torch.eye(2, dtype=torch.float64))
    assert factor[1].isnan().all(), "cholesky_ex leaves finite numbers there"
    with pytest.raises(torch.linalg.LinAlgError, match="1 of 2 cross matrices are indefinite even with jitter 1e-09"):
        _cholesky(matrix)

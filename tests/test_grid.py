"""Voxel codes and unfoldings: round trips, padding and limits."""

from __future__ import annotations

import pytest
import torch

from cpic_monai.grid import UNFOLDINGS, IndexGrid, all_codes, next_power_of_two

SHAPES = [(8, 4, 2), (5, 3, 7), (1, 6, 1), (1, 1, 1), (9,), (3, 5)]
unfoldings = pytest.mark.parametrize("unfolding", UNFOLDINGS)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.mark.parametrize(("size", "padded"), [(1, 1), (2, 2), (3, 4), (512, 512), (513, 1024)])
def test_next_power_of_two(size: int, padded: int) -> None:
    assert next_power_of_two(size) == padded


def test_modes_by_hand() -> None:
    modes = {u: [m.tolist() for m in IndexGrid((2, 4), u).modes] for u in UNFOLDINGS}
    # Row-major strides of the 2 x 4 box are (4, 1).
    assert modes["tt"] == [[0, 4], [0, 1, 2, 3]]
    assert modes["grouped"] == [[0, 4], [0, 2], [0, 1]]
    assert modes["interleaved"] == [[0, 4], [0, 2], [0, 1]]
    assert modes["fused"] == [[0, 2, 4, 6], [0, 1]]


def test_interleaved_takes_the_coarsest_bit_of_every_axis_first() -> None:
    modes = [m.tolist() for m in IndexGrid((4, 4), "interleaved").modes]
    assert modes == [[0, 8], [0, 2], [0, 4], [0, 1]]
    assert [m.tolist() for m in IndexGrid((4, 4), "grouped").modes] == [[0, 8], [0, 4], [0, 2], [0, 1]]


@unfoldings
@shapes
def test_codes_name_every_voxel_once(shape: tuple[int, ...], unfolding: str) -> None:
    grid = IndexGrid(shape, unfolding)
    padded = torch.Size(grid.padded_shape).numel()
    codes = all_codes(grid)
    assert codes.dtype == torch.int64
    assert codes.sort().values.tolist() == list(range(padded))
    assert torch.equal(grid.encode(grid.decode(codes)), codes)
    assert grid.padded_shape == (shape if unfolding == "tt" else tuple(next_power_of_two(n) for n in shape))


@unfoldings
@shapes
def test_digits_add_up_to_the_code(shape: tuple[int, ...], unfolding: str) -> None:
    grid = IndexGrid(shape, unfolding)
    codes = all_codes(grid)
    digits = grid.digits(codes)
    assert digits.shape == (len(codes), len(grid.modes))
    total = sum(mode[digits[:, k]] for k, mode in enumerate(grid.modes))
    assert torch.equal(torch.as_tensor(total), codes)
    # In mode order the digits count up like a row-major index.
    place = torch.zeros_like(codes)
    for k, n in enumerate(grid.mode_sizes):
        place = place * n + digits[:, k]
    assert torch.equal(place, torch.arange(len(codes)))


@unfoldings
@shapes
def test_inside_counts_the_voxels_of_the_scan(shape: tuple[int, ...], unfolding: str) -> None:
    grid = IndexGrid(shape, unfolding)
    assert int(grid.inside(all_codes(grid)).sum()) == torch.Size(shape).numel()


@unfoldings
@shapes
def test_unfold_and_fold(shape: tuple[int, ...], unfolding: str) -> None:
    grid = IndexGrid(shape, unfolding)
    dense = torch.randn(2, *shape, 3)
    unfolded = grid.unfold(dense)
    assert unfolded.shape == (2, *grid.mode_sizes, 3)
    assert torch.equal(grid.fold(unfolded), dense)
    codes = all_codes(grid)
    flat = unfolded.reshape(2, -1, 3)
    inside = grid.inside(codes)
    assert not flat[:, ~inside].any(), "padding must be zero"
    voxels = grid.decode(codes[inside])
    assert torch.equal(flat[:, inside], dense[(slice(None), *voxels.T)])


@unfoldings
def test_codes_of_8192_cubed_fit_int64(unfolding: str) -> None:
    grid = IndexGrid((8192, 8192, 8192), unfolding)
    corner = torch.tensor([[8191, 8191, 8191], [0, 0, 0], [8191, 0, 1]])
    codes = grid.encode(corner)
    assert codes.tolist() == [8192**3 - 1, 0, 8191 * 8192**2 + 1]
    assert torch.equal(grid.decode(codes), corner)
    if unfolding != "tt":  # 39 bits; the modes of `tt` are too long to compare digit by digit here
        assert torch.Size(grid.mode_sizes).numel() == 8192**3
    digits = grid.digits(codes)
    assert sum(int(mode[digits[0, k]]) for k, mode in enumerate(grid.modes)) == 8192**3 - 1


@pytest.mark.parametrize("voxel", [[8, 0, 0], [0, -1, 0], [0, 0, 2]])
def test_voxels_outside_are_refused_by_name(voxel: list[int]) -> None:
    with pytest.raises(ValueError, match=str(voxel).replace("[", r"\[").replace("]", r"\]")):
        IndexGrid((8, 4, 2)).encode(torch.tensor([[1, 1, 1], voxel]))


def test_bad_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="'qtt' is none of"):
        IndexGrid((4, 4), "qtt")
    with pytest.raises(ValueError, match="found 0"):
        IndexGrid((4, 0))
    with pytest.raises(ValueError, match="int64"):
        IndexGrid((2**21, 2**21, 2**21))
    assert IndexGrid((2**20, 2**21, 2**21)).padded_shape == (2**20, 2**21, 2**21)


@unfoldings
@pytest.mark.parametrize("step", [2, 3, 5])
@pytest.mark.parametrize("shape", [(8, 4, 2), (5, 3, 7), (1, 6, 1), (13,)], ids=str)
def test_a_cell_stands_for_a_cube_of_voxels(shape: tuple[int, ...], step: int, unfolding: str) -> None:
    grid = IndexGrid(shape, unfolding, step)
    voxels = torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, len(shape))
    codes = grid.encode(voxels)
    middles = grid.decode(codes)
    assert grid.inside(codes).all()
    assert (middles < torch.tensor(shape)).all(), "the voxel that is looked at lies in the scan"
    assert torch.equal(middles // step, voxels // step)
    whole = voxels // step * step + step <= torch.tensor(shape)
    expected = voxels // step * step + torch.tensor(grid.offset)
    assert torch.equal(middles[whole], expected[whole])
    every = all_codes(grid)
    assert torch.equal(grid.encode(grid.decode(every)), every)
    assert int(grid.inside(every).sum()) == len(codes.unique()) == torch.Size(grid.cells).numel()
    assert torch.equal(sum(m[d] for m, d in zip(grid.modes, grid.digits(every).T, strict=True)), every)


def test_the_middle_of_a_cell() -> None:
    assert IndexGrid((48, 7, 9), step=4).decode(torch.zeros(1, dtype=torch.int64)).tolist() == [[2, 2, 0]]
    assert IndexGrid((48, 7, 9), step=4).cells == (12, 2, 3)


@pytest.mark.parametrize("step", [0, -1, 1.5])
def test_steps_that_are_none(step: float) -> None:
    with pytest.raises(ValueError, match="step"):
        IndexGrid((4, 4), step=step)  # type: ignore[arg-type]


@unfoldings
def test_dense_cells_there_and_back(unfolding: str) -> None:
    grid = IndexGrid((7, 5, 4), unfolding, step=2)
    dense = torch.randn((2, 4, 3, 2, 3), generator=torch.Generator().manual_seed(0))
    assert torch.equal(grid.fold(grid.unfold(dense)), dense)

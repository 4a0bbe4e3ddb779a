"""Pivot rows of matrices of known rank."""

from __future__ import annotations

import pytest
import torch

from cpic_monai.cross import joint_rows, pivoted_rows


def low_rank(rank: int, rows: int = 12, columns: int = 9, groups: int = 2) -> torch.Tensor:
    return torch.randn(groups, rows, rank).double() @ torch.randn(groups, rank, columns).double()


@pytest.mark.parametrize("true", [1, 3, 5])
def test_alive_pivots_count_the_rank_and_span_the_rows(true: int) -> None:
    matrix = low_rank(true)
    rows, alive = pivoted_rows(matrix, 6)
    assert rows.shape == alive.shape == (2, 6)
    assert alive.sum(1).tolist() == [true, true]
    for g in range(2):
        assert len(set(rows[g].tolist())) == 6, "pivots must be distinct, dead ones too"
        basis = matrix[g, rows[g][alive[g]]]
        rest = matrix[g] - matrix[g] @ torch.linalg.pinv(basis) @ basis
        assert float(rest.abs().max()) < 1e-9


def test_order_of_choice_by_hand() -> None:
    # Longest row first; then the one with most left beside it: row 1 is parallel to row 2 and adds nothing.
    matrix = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [4.0, 0.0], [3.0, 0.5]]], dtype=torch.float64)
    rows, alive = pivoted_rows(matrix, 3)
    assert rows[0, :2].tolist() == [2, 0]
    assert alive.tolist() == [[True, True, False]]


def test_tolerance_is_relative_to_the_first_pivot() -> None:
    matrix = torch.diag(torch.tensor([1000.0, 10.0, 0.1], dtype=torch.float64))[None]
    assert pivoted_rows(matrix, 3, tol=1e-3)[1].tolist() == [[True, True, False]]
    assert pivoted_rows(matrix * 1e-6, 3, tol=1e-3)[1].tolist() == [[True, True, False]]
    assert pivoted_rows(matrix, 3, tol=1e-9)[1].all()


def test_an_empty_scan_keeps_one_pivot() -> None:
    rows, alive = pivoted_rows(torch.zeros(1, 4, 3, dtype=torch.float64), 3)
    assert alive.tolist() == [[True, False, False]]
    assert len(set(rows[0].tolist())) == 3


def test_no_more_pivots_than_rows_and_at_least_one_wanted() -> None:
    assert pivoted_rows(torch.randn(1, 2, 5), 7)[0].shape == (1, 2)
    with pytest.raises(ValueError, match="found 0"):
        pivoted_rows(torch.randn(1, 2, 5), 0)


def test_joint_rows_serve_every_scan() -> None:
    first, second = torch.zeros(2, 6, 4, dtype=torch.float64)
    first[1, 0], second[4, 2] = 1.0, 1.0
    rows, alive = joint_rows(torch.stack([first, second]), 3)
    assert rows.shape == (1, 3)
    assert sorted(rows[0, :2].tolist()) == [1, 4]
    assert alive.tolist() == [[True, True, False]]


def test_a_bright_scan_does_not_choose_for_all() -> None:
    matrix = low_rank(5, groups=3)
    rows, alive = joint_rows(matrix, 4)
    brighter = matrix * torch.tensor([1e6, 1.0, 1e-3], dtype=torch.float64)[:, None, None]
    assert torch.equal(joint_rows(brighter, 4)[0], rows)
    assert alive.all()
    black = torch.cat([matrix, torch.zeros(1, 12, 9, dtype=torch.float64)])
    assert torch.equal(joint_rows(black, 4)[0], rows)


def test_many_short_rows_are_chosen_as_few_long_ones_are() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(2, 60, 5, dtype=torch.float64)
    assert 60 > 3 * 5, "the inner products of all rows are not kept"
    found, alive = pivoted_rows(matrix, 3, by_fit=True)
    # The same rows with columns of zeros, which change no inner product.
    rows, _ = pivoted_rows(torch.nn.functional.pad(matrix, (0, 55)), 3, by_fit=True)
    assert torch.equal(found, rows)
    assert alive.all()

"""Tensor trains against dense tensors."""

from __future__ import annotations

import pytest
import torch
from random_trains import change_gauge, random_train

from cpic_monai.tensor_train import TensorTrain, concatenate, inner, norm, orthogonalize, round_train

SIZES = (3, 2, 4, 2)


def test_full_by_hand() -> None:
    # Rank one: the outer product of (1, 2), (3, 4, 5) and the two channels (1, 10).
    first = torch.tensor([1.0, 2.0]).reshape(1, 1, 2, 1)
    second = (torch.tensor([3.0, 4.0, 5.0])[:, None] * torch.tensor([1.0, 10.0])).reshape(1, 1, 3, 2)
    train = TensorTrain((first, second))
    expected = torch.tensor([[[3, 30], [4, 40], [5, 50]], [[6, 60], [8, 80], [10, 100]]], dtype=torch.float32)
    assert torch.equal(train.full()[0], expected)
    assert (train.batch, train.mode_sizes, train.ranks, train.channels) == (1, (2, 3), (1,), 2)
    assert torch.equal(train.at(torch.tensor([[1, 2], [0, 0]])), torch.tensor([[[10.0, 100.0], [3.0, 30.0]]]))
    # <T, T> = (1 + 4) (9 + 16 + 25) (1 + 100)
    assert inner(train, train).tolist() == [[5 * 50 * 101]]
    torch.testing.assert_close(norm(train), torch.tensor([25250.0]).sqrt())


def test_full_is_the_chain_of_contractions() -> None:
    train = random_train(SIZES, 3, channels=2, batch=2)
    a, b, c, d = train.cores
    expected = torch.einsum("zaib,zbjc,zckd,zdle->zijkle", a, b, c, d)
    torch.testing.assert_close(train.full(), expected, rtol=1e-13, atol=1e-13)


def test_at_every_entry_and_with_digits_of_each_tensor() -> None:
    train = random_train(SIZES, 3, channels=2, batch=2)
    digits = torch.cartesian_prod(*(torch.arange(n) for n in SIZES))
    flat = train.full().reshape(2, -1, 2)
    torch.testing.assert_close(train.at(digits), flat, rtol=1e-12, atol=1e-13)
    own = torch.stack([digits[:5], digits[5:10]])
    torch.testing.assert_close(train.at(own)[1], flat[1, 5:10], rtol=1e-12, atol=1e-13)


def test_inner_and_norm() -> None:
    a, b = random_train(SIZES, 3, 2, batch=3, seed=1), random_train(SIZES, 2, 2, batch=2, seed=2)
    expected = a.full().flatten(1) @ b.full().flatten(1).T
    torch.testing.assert_close(inner(a, b), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm(a), a.full().flatten(1).norm(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(inner(change_gauge(a), b), expected, rtol=1e-9, atol=1e-9)


def test_inner_of_unlike_trains_is_refused() -> None:
    a = random_train(SIZES, 2, channels=2)
    with pytest.raises(ValueError, match="unlike trains"):
        inner(a, random_train((3, 2, 4, 3), 2, channels=2))
    with pytest.raises(ValueError, match="channels 2 and 1"):
        inner(a, random_train(SIZES, 2, channels=1))


def test_gradient_of_inner() -> None:
    a, b = random_train((2, 3, 2), 2, batch=2, seed=1), random_train((2, 3, 2), 2, seed=2)
    cores = [core.requires_grad_() for core in a.cores]
    assert torch.autograd.gradcheck(lambda *c: inner(TensorTrain(c), b), cores)


def test_concatenate_pads_smaller_bonds() -> None:
    a, b = random_train(SIZES, 3, 2, batch=2, seed=1), random_train(SIZES, 1, 2, batch=1, seed=2)
    both = concatenate([a, b])
    assert both.ranks == a.ranks
    torch.testing.assert_close(both.full(), torch.cat([a.full(), b.full()]), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(both[2].full(), b.full(), rtol=1e-13, atol=1e-13)
    with pytest.raises(ValueError, match="no tensor trains"):
        concatenate([])


def test_orthogonalize_keeps_the_tensor() -> None:
    train = random_train(SIZES, 3, 2, batch=2)
    left = orthogonalize(train)
    torch.testing.assert_close(left.full(), train.full(), rtol=1e-11, atol=1e-12)
    for core in left.cores[:-1]:
        gram = torch.einsum("brns,brnt->bst", core, core)
        torch.testing.assert_close(gram, torch.eye(gram.shape[-1]).expand_as(gram).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(left.cores[-1].flatten(1).norm(dim=1), norm(train), rtol=1e-12, atol=0)


def test_rounding_finds_the_true_rank() -> None:
    small = random_train((2, 3, 2, 3), 2, batch=2, seed=3)
    # The same tensor with bonds of 4: half of it twice.
    doubled = TensorTrain(
        (
            torch.cat([small.cores[0] / 2] * 2, dim=3),
            *(
                torch.cat([torch.cat([c, 0 * c], dim=3), torch.cat([0 * c, c], dim=3)], dim=1)
                for c in small.cores[1:-1]
            ),
            torch.cat([small.cores[-1]] * 2, dim=1),
        )
    )
    torch.testing.assert_close(doubled.full(), small.full(), rtol=1e-12, atol=1e-12)
    rounded = round_train(doubled, 2)
    assert max(rounded.ranks) == 2
    torch.testing.assert_close(rounded.full(), small.full(), rtol=1e-10, atol=1e-11)


def test_rounding_error_is_bounded_by_the_discarded_singular_values() -> None:
    train = random_train((4, 3, 4, 3), 4, channels=2)
    dense = train.full()[0]
    discarded = 0.0
    for k in range(1, 4):
        matrix = dense.reshape(torch.Size(train.mode_sizes[:k]).numel(), -1)
        discarded += float(torch.linalg.svdvals(matrix)[2:].square().sum())
    error = float((round_train(train, 2).full()[0] - dense).norm())
    assert 0 < error <= discarded**0.5 * (1 + 1e-12)


def test_rank_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, found 0"):
        round_train(random_train(SIZES, 2), 0)


def test_cores_that_do_not_fit_are_refused() -> None:
    a = torch.zeros(1, 1, 2, 3)
    with pytest.raises(ValueError, match="core 1"):
        TensorTrain((a, torch.zeros(1, 2, 2, 1)))
    with pytest.raises(ValueError, match="core 1"):
        TensorTrain((a, torch.zeros(2, 3, 2, 1)))
    with pytest.raises(ValueError, match="at least one core"):
        TensorTrain(())


def test_detach_and_to() -> None:
    train = TensorTrain(tuple(c.requires_grad_() for c in random_train((2, 2), 2).cores))
    assert not any(c.requires_grad for c in train.detach().cores)
    assert {c.dtype for c in train.to(torch.float32).cores} == {torch.float32}


def test_a_scan_of_a_batch_is_picked_as_from_a_list() -> None:
    train = random_train((2, 3), 2, batch=3)
    assert torch.equal(train[-1].full(), train[2].full())
    assert train[1].batch == 1
    assert train[1:].batch == 2
    with pytest.raises(IndexError):
        train[3]

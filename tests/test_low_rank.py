"""The low-rank term of the training loss: what it asks for, what it adds, and that the encoder learns by it."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from planted import planted_batch
from scans import small_network

from cpic_monai.engines import RECIPES, Recipe
from cpic_monai.handlers.held_out import HeldOutCurve
from cpic_monai.inferers import LowRankTerm, PenalisedLoss
from cpic_monai.losses import PinballLoss


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_is_the_recipes_own_plus_the_weighted_error(name: str) -> None:
    network = small_network(draws=2, noise=0.0).train()
    batch = planted_batch(network, 6)
    losses = {}
    for weight in (0.0, 0.5, 2.0):
        network.basis.clear()
        recipe = Recipe(name, network, PinballLoss(), low_rank_weight=weight, training_draws=2)
        assert isinstance(recipe.loss, PenalisedLoss) is (weight > 0)
        image, label, args, kwargs = recipe.prepare_batch(batch)
        losses[weight] = recipe.loss(recipe.inferer(image, network, *args, **kwargs), label).item()
        if weight:
            assert recipe.low_rank.last is not None
            error = recipe.low_rank.last.item()
            assert 0.01 < error < 10
            assert losses[weight] == pytest.approx(losses[0.0] + weight * error, rel=1e-5)
        else:
            assert recipe.low_rank.last is None, "not computed"


def test_the_encoder_learns_to_be_of_low_rank() -> None:
    """By the term alone the error falls, at a size of the encoding that does not."""
    torch.manual_seed(0)
    network = small_network(draws=2).train()
    image = planted_batch(network, 8)["image"]
    term = LowRankTerm(1.0, network, 2)
    optimizer = torch.optim.RAdam(network.encoder.parameters(), lr=2e-2)
    errors = []
    for _ in range(40):
        optimizer.zero_grad()
        term.decompose(network, image)
        loss = term.take()
        loss.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.encoder.parameters())
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.5 * errors[0]


def test_what_it_needs_is_said_before_training() -> None:
    loss = PinballLoss()
    with pytest.raises(ValueError, match=r"`low_rank_weight` is 0.1.*`training_draws` of at least 2, found 1"):
        Recipe("closed_form", small_network(), loss, low_rank_weight=0.1)
    for kind in ("scan", "every_voxel", "random_voxels", "picked_values"):
        with pytest.raises(ValueError, match=r"`low_rank_weight` is 0.1.*`index_sets` cohort, found"):
            Recipe("closed_form", small_network(index_sets=kind), loss, low_rank_weight=0.1, training_draws=2)
    with pytest.raises(ValueError, match="`low_rank_weight` must be at least 0, found -1"):
        Recipe("closed_form", small_network(), loss, low_rank_weight=-1.0)


def test_a_loss_without_its_inferer_is_refused() -> None:
    network = small_network(draws=2)
    recipe = Recipe("closed_form", network, PinballLoss(), low_rank_weight=1.0, training_draws=2)
    with pytest.raises(RuntimeError, match="no batch was decomposed"):
        recipe.loss(torch.zeros(2, 1), torch.zeros(2, 1))


def test_the_curve_is_the_mean_over_an_epoch() -> None:
    network = small_network(draws=2)
    term = LowRankTerm(1.0, network, 2)

    def step(engine: Engine, value: float) -> None:
        term.last = torch.tensor(value)

    engine = Engine(step)
    HeldOutCurve(term).attach(engine)
    assert engine.run([1.0, 2.0], max_epochs=1).metrics["held_out_error"] == pytest.approx(1.5)
    assert engine.run([3.0, 5.0], max_epochs=2).metrics["held_out_error"] == pytest.approx(4.0)
    silent = Engine(step)
    HeldOutCurve(LowRankTerm(0.0, network, 1)).attach(silent)
    assert "held_out_error" not in silent.run([1.0], max_epochs=1).metrics

"""Inferers and recipes: what an engine calls, and that the encoder learns by it."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from planted import planted_batch
from scans import images, small_network

from cpic_monai.batches import PrepareVisits
from cpic_monai.engines import RECIPES, Recipe, train
from cpic_monai.inferers import LeaveOneOutInferer, QuantileInferer
from cpic_monai.losses import PinballLoss
from cpic_monai.networks import LeaveOneOutRidge


def test_quantile_inferer_is_the_network() -> None:
    network, image, tabular = small_network(), images(2), torch.randn(2, 1)
    assert torch.equal(QuantileInferer()(image, network, tabular=tabular), network(image, tabular))


def test_leave_one_out_loss_decreases() -> None:
    network = small_network().train()
    recipe = Recipe("closed_form", network, PinballLoss(), ridge_learning_rate=0.1)
    image, label, args, kwargs = recipe.prepare_batch(planted_batch(network, 10))
    optimizer = torch.optim.RAdam(recipe.parameters, lr=3e-2)
    before = [p.detach().clone() for p in network.encoder.parameters()]
    head = [p.detach().clone() for p in network.head.parameters()]
    losses = []
    assert label is not None
    for _ in range(12):
        optimizer.zero_grad()
        prediction = recipe.inferer(image, network, *args, **kwargs)
        assert prediction.shape == label.shape
        assert prediction.dtype == torch.float32
        loss = recipe.loss(prediction, label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(before, network.encoder.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(head, network.head.parameters(), strict=True))


def test_leave_one_out_of_a_batch_does_not_see_a_scans_own_label() -> None:
    network = small_network()
    inferer = LeaveOneOutInferer(LeaveOneOutRidge())
    image, label, args, kwargs = PrepareVisits(with_label=True)(planted_batch(network, 5))
    assert label is not None
    first = inferer(image, network, *args, **kwargs)
    kwargs["label"] = torch.where(kwargs["scan_index"][:, None] == 2, label + 50, label)
    again = inferer(image, network, *args, **kwargs)
    own = kwargs["scan_index"] == 2
    torch.testing.assert_close(again[own], first[own], rtol=1e-4, atol=1e-4)
    assert float((again[~own] - first[~own]).abs().min()) > 1e-4


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str) -> None:
    network, loss = small_network(), PinballLoss()
    recipe = Recipe(name, network, loss)
    closed = name == "closed_form"
    assert isinstance(recipe.inferer, LeaveOneOutInferer if closed else QuantileInferer)
    assert network.moving_basis is not closed
    assert recipe.fits_head is closed
    assert isinstance(recipe.loss, torch.nn.MSELoss if closed else PinballLoss)
    given = {id(p) for group in recipe.parameters for p in group["params"]}
    assert {id(p) for p in network.encoder.parameters()} <= given
    assert {id(p) for p in recipe.ridge.parameters()} <= given
    assert ({id(p) for p in network.head.parameters()} <= given) is not closed
    assert recipe.to("cpu") is recipe


def test_unknown_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="'joint' is none of"):
        Recipe("joint", small_network(), PinballLoss())
    with pytest.raises(ValueError, match="`projection` trl learns its weights"):
        Recipe("closed_form", small_network(projection="trl"), PinballLoss())
    for index_sets in ("tangent", "random_voxels", "picked_values"):
        with pytest.raises(ValueError, match="set `index_sets` to scan or cohort"):
            Recipe("paper", small_network(index_sets=index_sets), PinballLoss())


class _Epochs(Engine):
    """A trainer that was resumed after some epochs; its validator chooses the first."""

    def __init__(self, done: int, wanted: int, validated: bool = True) -> None:
        super().__init__(lambda engine, batch: None)
        self.state.epoch, self.state.max_epochs, self.state.epoch_length = done, wanted, 1
        self.validator, self.ran = Engine(lambda engine, batch: None), []
        self.validator.state.best_metric_epoch = 1 if validated else -1

    def run(self, *args, **kwargs):
        self.ran.append(self.state.epoch)
        return self.state


@pytest.mark.parametrize(("done", "wanted", "runs"), [(0, 3, 1), (2, 3, 1), (3, 3, 0), (5, 3, 0)])
def test_a_run_that_is_complete_does_not_begin_anew(done: int, wanted: int, runs: int, caplog) -> None:
    trainer = _Epochs(done, wanted)
    with caplog.at_level("INFO"):
        train(trainer, trainer.validator)
    assert len(trainer.ran) == runs
    assert (f"training ended after epoch {done} already" in caplog.text) == (not runs)


def test_a_run_without_a_validated_epoch_has_no_checkpoint() -> None:
    trainer = _Epochs(0, 1, validated=False)
    with pytest.raises(RuntimeError, match="so there is no checkpoint of this run: raise `time_limit`"):
        train(trainer, trainer.validator)

"""TCL, TRL (Tucker and TT) and tensor dropout: against dense algebra, and as parts of a network."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from monai.networks.nets import resnet10
from torch import Tensor, nn

from cpic_monai.networks import (
    TensorContractionLayer,
    TensorDropout,
    TensorRegressionLayer,
    TensorTrainRegressionLayer,
)

SHAPE, OUTPUTS = (6, 2, 3, 4), 5


def activation(batch: int = 3, seed: int = 0) -> Tensor:
    return torch.randn((batch, *SHAPE), generator=torch.Generator().manual_seed(seed))


def tucker_layer(**settings: Any) -> TensorRegressionLayer:
    return TensorRegressionLayer(SHAPE, OUTPUTS, (4, 2, 1, 3, 2), **settings)


def train_layer(**settings: Any) -> TensorTrainRegressionLayer:
    return TensorTrainRegressionLayer(SHAPE, OUTPUTS, 4, **settings)


def test_tcl_is_the_product_along_every_mode() -> None:
    layer = TensorContractionLayer(SHAPE, (3, 2, 1, 5), bias=True)
    nn.init.normal_(layer.bias)
    a, b, c, d = layer.factors
    expected = torch.einsum("zijkl,ai,bj,ck,dl->zabcd", activation(), a, b, c, d) + layer.bias
    torch.testing.assert_close(layer(activation()), expected)


def test_unit_factors_of_a_tcl_ignore_their_length() -> None:
    layer = TensorContractionLayer(SHAPE, (3, 2, 1, 5), unit_factors=True)
    expected = layer(activation())
    with torch.no_grad():
        layer.factors[0].mul_(7.0)
    torch.testing.assert_close(layer(activation()), expected)


@pytest.mark.parametrize("unit_factors", [False, True])
def test_tucker_trl_is_the_inner_product_with_its_dense_weight(unit_factors: bool) -> None:
    layer = tucker_layer(unit_factors=unit_factors)
    nn.init.normal_(layer.bias)
    expected = activation().flatten(1) @ layer.weight().reshape(-1, OUTPUTS) + layer.bias
    torch.testing.assert_close(layer(activation()), expected, rtol=1e-4, atol=1e-5)
    for k, r in enumerate(layer.rank):
        assert int(torch.linalg.matrix_rank(layer.weight().movedim(k, 0).flatten(1))) <= r


def test_train_trl_is_the_inner_product_with_its_dense_weight() -> None:
    layer = train_layer()
    weight = torch.einsum("aib,bjc,ckd,dle,eof->ijklo", *layer.cores)
    torch.testing.assert_close(layer(activation()), activation().flatten(1) @ weight.reshape(-1, OUTPUTS))


@pytest.mark.parametrize("kind", [tucker_layer, train_layer])
def test_new_layers_keep_the_scale_of_a_linear_layer(kind: Any) -> None:
    torch.manual_seed(0)
    x = activation(200)
    found = torch.stack([kind()(x).std() for _ in range(40)]).square().mean().sqrt()
    linear = torch.stack([nn.Linear(144, OUTPUTS, bias=False)(x.flatten(1)).std() for _ in range(40)])
    assert float(found) == pytest.approx(float(linear.square().mean().sqrt()), rel=0.3)


@pytest.mark.parametrize("kept", [True, False])
def test_a_layer_that_starts_as_a_linear_one_has_the_bias_that_is_asked_for(kept: bool) -> None:
    linear = nn.Linear(144, OUTPUTS, bias=not kept)
    for layer in (
        TensorRegressionLayer.from_linear(linear, SHAPE, (*SHAPE, OUTPUTS), bias=kept),
        TensorTrainRegressionLayer.from_linear(linear, SHAPE, 144, bias=kept),
    ):
        assert (layer.bias is not None) == kept
        if layer.bias is not None:
            assert not layer.bias.any()


def test_full_rank_starts_from_a_linear_layer_exactly() -> None:
    linear, x = nn.Linear(144, OUTPUTS), activation()
    full = TensorRegressionLayer.from_linear(linear, SHAPE, (*SHAPE, OUTPUTS))
    torch.testing.assert_close(full(x), linear(x.flatten(1)), rtol=1e-4, atol=1e-5)
    train = TensorTrainRegressionLayer.from_linear(linear, SHAPE, 144)
    torch.testing.assert_close(train(x), linear(x.flatten(1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unit_factors", [False, True])
def test_a_linear_layer_behind_average_pooling(unit_factors: bool) -> None:
    linear, x = nn.Linear(6, OUTPUTS), activation()
    expected = linear(x.mean((2, 3, 4)))
    layer = TensorRegressionLayer.from_linear(linear, SHAPE, (5, 1, 1, 1, 5), unit_factors=unit_factors)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    train = TensorTrainRegressionLayer.from_linear(linear, SHAPE, 5)
    torch.testing.assert_close(train(x), expected, rtol=1e-4, atol=1e-5)
    train(x).square().sum().backward()
    # Bonds that pooling leaves unused are no dead end.
    assert all(bool(core.grad.flatten().abs().max() > 0) for core in train.cores)


def test_truncation_of_a_pooled_layer_is_its_best_low_rank_matrix() -> None:
    """Eckart and Young: with the spatial modes averaged the Tucker decomposition is a truncated SVD."""
    linear = nn.Linear(6, OUTPUTS)
    layer = TensorRegressionLayer.from_linear(linear, SHAPE, (2, 1, 1, 1, 2))
    pooled = layer.weight().sum((1, 2, 3)).T
    error = float((pooled - linear.weight).square().sum())
    assert error == pytest.approx(float(torch.linalg.svdvals(linear.weight.detach())[2:].square().sum()), rel=1e-4)


def test_a_weight_of_low_rank_is_recovered() -> None:
    given = tucker_layer()
    linear = nn.Linear(144, OUTPUTS)
    with torch.no_grad():
        linear.weight.copy_(given.weight().reshape(-1, OUTPUTS).T)
        linear.bias.zero_()
    found = TensorRegressionLayer.from_linear(linear, SHAPE, given.rank)
    torch.testing.assert_close(found(activation()), given(activation()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [tucker_layer, train_layer])
def test_tensor_dropout_is_unbiased_and_gone_in_evaluation(kind: Any) -> None:
    torch.manual_seed(1)
    layer, x = kind(dropout=0.3), activation()
    layer.eval()
    expected = layer(x)
    assert torch.equal(layer(x), expected)
    layer.train()
    drawn = torch.stack([layer(x).detach() for _ in range(2500)])
    assert float(drawn.std(0).min()) > 0
    error = (drawn.mean(0) - expected) / (drawn.std(0) / 2500**0.5)
    assert float(error.abs().max()) < 4.5


def test_tensor_dropout_leaves_out_whole_components() -> None:
    dropout, core = TensorDropout(0.5), torch.ones(4, 1, 6)
    torch.manual_seed(0)
    dropped = dropout(core, range(3))
    assert int(torch.linalg.matrix_rank(dropped[:, 0])) == 1
    assert set(dropped.unique().tolist()) == {0.0, 4.0}
    assert torch.equal(dropout.eval()(core, range(3)), core)


@pytest.mark.parametrize("kind", [tucker_layer, train_layer])
def test_the_weight_is_learned(kind: Any) -> None:
    torch.manual_seed(0)
    truth, layer, x = kind().requires_grad_(False), kind(), activation(300)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    target = truth(x)
    for _ in range(250):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.05 * float(target.var())


def test_in_a_monai_network_saved_and_copied() -> None:
    """A TRL in the place of a ResNet's pooling and fully connected layer; the checkpoint holds tensors alone."""

    def network() -> nn.Sequential:
        body = list(resnet10(n_input_channels=1, feed_forward=False, widen_factor=1 / 16).children())[:-1]
        return nn.Sequential(
            *body,
            TensorContractionLayer((32, 2, 2, 2), (8, 2, 2, 2)),
            nn.BatchNorm3d(8),
            TensorRegressionLayer((8, 2, 2, 2), 3, (4, 1, 1, 1, 3), dropout=0.2),
        ).eval()

    first, second, x = network(), network(), torch.randn(2, 1, 32, 32, 32)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert first(x).shape == (2, 3)
    assert torch.equal(second(x), first(x))
    assert torch.equal(copy.deepcopy(first)(x), first(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TensorContractionLayer((2, 3), (2,)), "equal length"),
        (lambda: TensorRegressionLayer((2, 3), 4, (2, 3)), "one rank a mode"),
        (lambda: TensorRegressionLayer((2, 3), 4, (3, 3, 4)), "to the mode's size"),
        (lambda: TensorTrainRegressionLayer((2, 3), 4, 0), "at least 1"),
        (lambda: TensorDropout(1.0), "below 1"),
        (lambda: TensorRegressionLayer.from_linear(nn.Linear(7, 5), SHAPE, (1, 1, 1, 1, 1)), "all 144 values"),
        (lambda: TensorRegressionLayer.from_linear(nn.Linear(6, 5), SHAPE, (1, 1, 2, 1, 1)), "spatial ranks of 1"),
        (lambda: tucker_layer()(torch.zeros(1, 6, 2, 3, 3)), r"\(1, 6, 2, 3, 3\)"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

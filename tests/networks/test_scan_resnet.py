"""The dense baseline: MONAI's ResNet under the parts that recipes and handlers ask of a network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import resnet34
from torch import Tensor, nn

from cpic_monai.networks import ScanResNet, TensorContractionLayer, TensorRegressionLayer, TensorTrainRegressionLayer
from cpic_monai.networks.basis import mean_inner
from cpic_monai.networks.leave_one_out import LeaveOneOutRidge

SHAPE = (32, 40, 32)


def small(**settings: Any) -> ScanResNet:
    torch.manual_seed(0)
    return ScanResNet(SHAPE, **{"depth": 10, "rank": 4, "widen": 1 / 16, **settings}).eval()


def scans(batch: int = 3, seed: int = 0) -> Tensor:
    return torch.rand((batch, 1, *SHAPE), generator=torch.Generator().manual_seed(seed))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_encoder_is_monais_resnet() -> None:
    torch.manual_seed(0)
    whole = resnet34(n_input_channels=1, conv1_t_stride=2, widen_factor=1 / 16, feed_forward=False).eval()
    network = small(depth=34)
    network.encoder.load_state_dict(whole.state_dict())
    (train,) = network.decompose(scans())
    assert train.cores[0].shape == (3, 1, 1, 32)
    torch.testing.assert_close(train.cores[0].flatten(1).float(), whole(scans()))


def test_parameters_of_the_full_network() -> None:
    """ResNet-34 has 63.5 million; the head is that of C-PIC (its encoder has 23,146 of 87,429)."""
    with torch.device("meta"):
        network = ScanResNet((32, 64, 64), depth=34)
        body = resnet34(n_input_channels=1, feed_forward=False)
    assert parameters(network.encoder) == parameters(body) == 63_470_528
    assert parameters(network.basis) == 512 * 10 + 10
    assert parameters(network.head) == 87_429 - 23_146


@pytest.mark.parametrize("projection", ["linear", "trl", "basis"])
def test_rows_share_their_scan(projection: str) -> None:
    network, image = small(projection=projection), scans()
    if projection == "basis":
        network.basis.fit(network.decompose(scans(5, seed=1)))
    tabular, index = torch.randn(4, 1), torch.tensor([1, 0, 1, 2])
    out = network(image, tabular, index, subjects=["a", "b", "c"])
    assert out.shape == (4, 3)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, network(image[index], tabular), rtol=1e-4, atol=1e-5)
    assert not torch.equal(network(image)[0], network(image)[1])


@pytest.mark.parametrize("projection", ["linear", "trl"])
def test_learned_projections_learn(projection: str) -> None:
    network = small(projection=projection, noise=0.0).train()
    network.moving_basis = True
    network(scans()).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.basis.parameters() if p.ndim > 1)
    assert bool(network.encoder.conv1.weight.grad.any())  # type: ignore[union-attr]
    assert torch.equal(network.eval().basis.fit(network.decompose(scans())), network.basis(network.decompose(scans())))


@pytest.mark.parametrize(
    ("settings", "count", "kind"),
    [
        # activation 32 x 1 x 2 x 1: core + factors + bias
        ({"trl_rank": (8, 1, 1, 1, 4)}, 8 * 4 + 32 * 8 + 1 + 2 + 1 + 4 * 4 + 4, TensorRegressionLayer),
        ({}, 32 * 4 + 32 * 32 + 1 + 2 + 1 + 4 * 4 + 4, TensorRegressionLayer),
        ({"trl_rank": 3}, 32 * 3 + 3 * 3 + 3 * 2 * 3 + 3 * 3 + 3 * 4 + 4, TensorTrainRegressionLayer),
    ],
)
def test_tensor_regression_layers(settings: dict[str, Any], count: int, kind: type) -> None:
    network = small(projection="trl", trl_dropout=0.1, **settings)
    (layer,) = (m for m in network.basis.modules() if isinstance(m, kind))
    assert parameters(layer) == count
    assert network(scans()).shape == (3, 3)


def test_contraction_before_regression() -> None:
    network = small(projection="trl", contraction=(8, 1, 2, 1), trl_rank=(4, 1, 1, 1, 4))
    (layer,) = (m for m in network.basis.modules() if isinstance(m, TensorContractionLayer))
    assert parameters(layer) == 32 * 8 + 1 + 4 + 1
    assert network(scans()).shape == (3, 3)


def test_closed_form_recipe_learns_its_encoder() -> None:
    network = small(projection="basis").train()
    trains = network.decompose(scans(5))
    index = torch.arange(5)
    label = torch.randn(5, 1)
    left_out = LeaveOneOutRidge()(mean_inner(trains, trains), torch.zeros(5, 1), index, label)
    left_out.square().sum().backward()
    assert bool(network.encoder.conv1.weight.grad.any())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: small(depth=12), ValueError, "depth 12"),
        (lambda: small(projection="pool"), ValueError, "projection 'pool'"),
        (lambda: small(projection="trl", trl_rank=(64, 1, 1, 1, 4)), ValueError, "to the mode's size"),
        (lambda: small()(torch.zeros(1, 1, 8, 8, 8)), ValueError, "`spatial_shape`"),
        (lambda: small()([object()]), TypeError, "DenseScand"),
        (lambda: small().basis.fit(small().decompose(scans()), torch.zeros(3, 1)), ValueError, "projection: basis"),
    ],
)
def test_refusals(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_scales_are_refused() -> None:
    with pytest.raises(ValueError, match=r"config key `scales` is \[1, 4\]: a ResNet sees the view itself"):
        small(scales=[1, 4])

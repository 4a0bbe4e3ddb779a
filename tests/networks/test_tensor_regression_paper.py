"""Parameter counts and space savings printed in "Tensor Regression Networks", from the layers themselves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from cpic_monai.networks import TensorContractionLayer, TensorRegressionLayer, TensorTrainRegressionLayer


def parameters(*modules: nn.Module, bias: bool = False) -> int:
    """Trainable parameters; the paper leaves biases out of its space savings."""
    named = [pair for module in modules for pair in module.named_parameters()]
    return sum(p.numel() for name, p in named if bias or not name.endswith("bias"))


def vgg_layers(activation: Sequence[int], hidden: int) -> list[nn.Module]:
    """The three fully connected layers of VGG-19 behind an activation of this shape."""
    inputs = torch.Size(activation).numel()
    return [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1000)]


@pytest.mark.parametrize(
    ("size", "hidden", "printed"), [((512, 7, 7), 4096, -0.21), ((384, 5, 5), 3072, 65.87)], ids=["same", "smaller"]
)
def test_table_1_space_savings_of_a_tcl(size: tuple[int, ...], hidden: int, printed: float) -> None:
    with torch.device("meta"):  # shapes only: these layers hold 120 million weights
        reference = parameters(*vgg_layers((512, 7, 7), 4096))
        tcl = TensorContractionLayer((512, 7, 7), size)
        contracted = parameters(tcl, *vgg_layers(size, hidden))
    assert parameters(tcl) == sum(r * i for r, i in zip(size, (512, 7, 7), strict=True))
    assert round(100 * (1 - contracted / reference), 2) == printed


def test_section_4_2_parameters_of_vgg() -> None:
    """The paper's 119,545,856 is the first two fully connected layers with their biases; a TCL saves 99.8 % of one."""
    with torch.device("meta"):
        layers = vgg_layers((512, 7, 7), 4096)
        assert parameters(*layers[:2], bias=True) == 119_545_856
        tcl = parameters(TensorContractionLayer((512, 7, 7), (384, 5, 5)))
        assert round(100 * (1 - tcl / parameters(layers[0])), 1) == 99.8


@pytest.mark.parametrize(("rank", "printed"), [(200, 68.2), (150, 76.6), (100, 84.6), (50, 92.4)])
def test_table_3_space_savings_of_a_trl(rank: int, printed: float) -> None:
    """ResNet-101, joint spatial pooling; the paper prints 68.28 as 68.2 and the others rounded."""
    with torch.device("meta"):
        layer = TensorRegressionLayer((2048, 7, 7), 1000, (rank, 1, 1, rank))
        linear = nn.Linear(2048, 1000)
    by_formula = rank * 1 * 1 * rank + (2048 * rank + 7 + 7) + 1000 * rank  # Eq. 12
    assert parameters(layer) == by_formula
    assert 100 * (1 - parameters(layer) / parameters(linear)) == pytest.approx(printed, abs=0.09)


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((2048, 7, 7), (500, 1024, 3, 3)), ((1024, 3, 3), (1000, 1024, 3, 3))],
    ids=["TRL", "TCL and TRL"],
)
def test_table_2_ranks_follow_equation_12(shape: tuple[int, ...], rank: tuple[int, ...]) -> None:
    """Table 2 lists the output's rank first; here it comes last."""
    outputs_rank, *modes = rank
    with torch.device("meta"):
        layer = TensorRegressionLayer(shape, 1000, (*modes, outputs_rank))
    factors = sum(i * r for i, r in zip(shape, modes, strict=True)) + 1000 * outputs_rank
    assert parameters(layer) == torch.Size(rank).numel() + factors


def test_tensor_train_form() -> None:
    """``sum_k r_k I_k r_{k+1} + r_{N+1} O``, bonds bounded by what the modes allow."""
    layer = TensorTrainRegressionLayer((512, 1, 4, 4), 10, rank=20)
    assert layer.ranks == (1, 20, 20, 20, 10, 1)
    assert parameters(layer) == 512 * 20 + 20 * 20 + 20 * 4 * 20 + 20 * 4 * 10 + 10 * 10
    assert parameters(layer, bias=True) == parameters(layer) + 10

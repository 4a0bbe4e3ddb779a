"""Tensor contraction layer: an activation tensor to a smaller one, mode by mode (Tensor Regression Networks, 3.1).

Source: Kossaifi, Khanna, Lipton, Furlanello, Anandkumar, "Tensor Regression Networks".

These layers are the project's own: ``tensorly-torch`` 0.5.0 (June 2024, its last release) was tried first. With torch
2.13 six of its 56 tests fail, a TCL with a bias raises ``AttributeError``, tensor dropout on a TRL changes nothing
(the layer never calls the hooked weight), and its TRL builds the dense weight in every forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def mode_product(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """``tensor x_mode matrix`` (the paper's Eq. 1): ``(..., I, ...)`` and ``(R, I)`` to ``(..., R, ...)``."""
    return torch.tensordot(tensor, matrix, dims=([mode], [1])).movedim(-1, mode)


def check_activation(x: Tensor, input_shape: tuple[int, ...], layer: nn.Module) -> None:
    """Refuse an activation that is not ``(B, *input_shape)``."""
    if tuple(x.shape[1:]) != input_shape:
        raise ValueError(
            f"{type(layer).__name__} was made for activations (B, {', '.join(map(str, input_shape))}), found "
            f"{tuple(x.shape)}: the weight has one factor a mode, so the input's spatial size is part of the layer"
        )


class TensorContractionLayer(nn.Module):
    """TCL: ``G = X x_1 V1 x_2 V2 ...`` (Eq. 5), with ``sum_k I_k R_k`` parameters.

    Parameters
    ----------
    input_shape
        ``(I_1, ..., I_N)``: the activation's channels and spatial sizes, without the batch.
    output_shape
        ``(R_1, ..., R_N)``.
    bias
        Add a bias of ``output_shape``; the paper has none.
    unit_factors
        Hold every row of the factors at unit length (the paper normalises the factors when training from scratch).

    Raises
    ------
    ValueError
        If the shapes differ in length, or a size is below 1.
    """

    def __init__(
        self, input_shape: Sequence[int], output_shape: Sequence[int], bias: bool = False, unit_factors: bool = False
    ) -> None:
        super().__init__()
        self.input_shape, self.output_shape = tuple(input_shape), tuple(output_shape)
        if len(self.input_shape) != len(self.output_shape) or min((*self.input_shape, *self.output_shape)) < 1:
            raise ValueError(
                f"a TCL maps each mode to one: input_shape {self.input_shape} and output_shape {self.output_shape} "
                "must have equal length and sizes of at least 1"
            )
        self.unit_factors = unit_factors
        sizes = zip(self.output_shape, self.input_shape, strict=True)
        self.factors = nn.ParameterList(torch.empty(r, i) for r, i in sizes)
        self.bias = nn.Parameter(torch.empty(self.output_shape)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random orthonormal rows (or columns), so that the activation keeps its scale; no bias."""
        for factor in self.factors:
            nn.init.orthogonal_(factor)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Activation ``(B, I_1, ..., I_N)`` to ``(B, R_1, ..., R_N)``."""
        check_activation(x, self.input_shape, self)
        # The mode that shrinks most comes first: less is left for the others to do.
        for k in sorted(range(len(self.factors)), key=lambda k: self.output_shape[k] / self.input_shape[k]):
            factor = self.factors[k]
            x = mode_product(x, nn.functional.normalize(factor, dim=1) if self.unit_factors else factor, k + 1)
        return x if self.bias is None else x + self.bias

    def extra_repr(self) -> str:
        """See ``torch.nn.Module``."""
        return f"{self.input_shape} -> {self.output_shape}, bias={self.bias is not None}"

"""Tensor regression layer with a weight in tensor-train form, for dense activations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cpic_monai.networks.tensor_contraction import check_activation
from cpic_monai.networks.tensor_dropout import TensorDropout
from cpic_monai.networks.tensor_regression import linear_modes, take_bias
from cpic_monai.tensor_train import tt_svd


def bond_ranks(sizes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Bonds ``(1, r_1, ..., r_{K-1}, 1)`` of a train of these mode sizes: ``rank``, or what its two sides allow."""
    inner = (min(rank, math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes)))
    return (1, *inner, 1)


class TensorTrainRegressionLayer(nn.Module):
    """TRL whose weight is a tensor train over the input's modes and the output.

    The counterpart of :class:`TensorRegressionLayer`, with ``sum_k r_k I_k r_{k+1} + r_{N+1} O`` parameters: linear
    in the number of modes, where a Tucker core grows exponentially.

    Parameters
    ----------
    input_shape
        ``(I_0, ..., I_N)``: the activation's channels and spatial sizes, without the batch.
    outputs
        Size ``O`` of the output.
    rank
        Largest bond; bonds are smaller where the modes on one side allow no more.
    bias
        Learn a bias.
    dropout
        Probability of :class:`TensorDropout` on the inner bonds.

    Raises
    ------
    ValueError
        If ``rank`` is below 1.
    """

    def __init__(
        self, input_shape: Sequence[int], outputs: int, rank: int, bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"TT rank must be at least 1, found {rank}")
        self.input_shape, self.outputs = tuple(input_shape), outputs
        sizes = (*self.input_shape, outputs)
        self.ranks = bond_ranks(sizes, rank)
        self.cores = nn.ParameterList(torch.empty(self.ranks[k], n, self.ranks[k + 1]) for k, n in enumerate(sizes))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.dropout = TensorDropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal cores that give the weight the scale of torch's ``Linear``; no bias."""
        for core, size in zip(self.cores, (*self.input_shape, 3), strict=True):
            nn.init.normal_(core, std=(size * core.shape[2]) ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Activation ``(B, I_0, ..., I_N)`` to ``(B, O)``."""
        check_activation(x, self.input_shape, self)
        state = x.reshape(x.shape[0], 1, -1)
        for core in list(self.cores)[:-1]:
            r, n, _ = core.shape
            state = torch.einsum("brnm,rns->bsm", state.reshape(x.shape[0], r, n, -1), self.dropout(core, [2]))
        y = state[..., 0] @ self.cores[-1][..., 0]
        return y if self.bias is None else y + self.bias

    @classmethod
    @torch.no_grad()
    def from_linear(
        cls, linear: nn.Linear, input_shape: Sequence[int], rank: int, **settings: float
    ) -> TensorTrainRegressionLayer:
        """A layer that starts as the TT-SVD of a fully connected one.

        Parameters
        ----------
        linear
            Takes the flattened activation, or its global average over the spatial modes, whose cores then start
            as averages.
        input_shape, rank, settings
            Of the new layer.

        Raises
        ------
        ValueError
            If the linear layer takes neither.
        """
        shape, _ = linear_modes(linear, input_shape)
        settings.setdefault("bias", linear.bias is not None)
        layer = cls(input_shape, linear.out_features, rank, **settings)  # type: ignore[arg-type]
        weight = linear.weight.detach().double().T.reshape(1, *shape, linear.out_features, 1)
        for own, found in zip(layer.cores, tt_svd(weight, rank).cores, strict=True):
            core = found[0] * (found.shape[2] / own.shape[1])
            r, s = min(core.shape[0], own.shape[0]), min(core.shape[2], own.shape[2])
            # Bonds that pooling leaves unused start at zero on their right side alone, so that they can still learn.
            own[r:] = 0
            own[:r, :, :s] = core[:r, :, :s].to(own).expand(-1, own.shape[1], -1)
        take_bias(layer.bias, linear)
        return layer

    def extra_repr(self) -> str:
        """See ``torch.nn.Module``."""
        return f"{self.input_shape} -> {self.outputs}, ranks={self.ranks[1:-1]}, bias={self.bias is not None}"

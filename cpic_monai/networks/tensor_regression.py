"""Tensor regression layer with a Tucker weight (Tensor Regression Networks, 3.2), random or from a linear layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cpic_monai.networks.tensor_contraction import check_activation, mode_product
from cpic_monai.networks.tensor_dropout import TensorDropout


class TensorRegressionLayer(nn.Module):
    """TRL: ``y = <X, W> + b`` with ``W = [G; U_0, ..., U_{N+1}]`` of fixed Tucker rank (Eq. 8).

    It takes the place of pooling, flattening and a fully connected layer. The weight is never formed: the activation is
    contracted factor by factor. Rank 1 along the spatial modes is the paper's joint spatial pooling: the layer
    learns how to average.

    Parameters
    ----------
    input_shape
        ``(I_0, ..., I_N)``: the activation's channels and spatial sizes, without the batch.
    outputs
        Size ``O`` of the output.
    rank
        ``(R_0, ..., R_N, R_{N+1})``, one a mode and the output's last; at most the size of its mode.
    bias
        Learn ``b``.
    dropout
        Probability of :class:`TensorDropout` on the core's bonds.
    unit_factors
        Hold the factors' columns at unit length, the paper's constraint when training from scratch.

    Raises
    ------
    ValueError
        If ``rank`` has another length than modes and output together, or exceeds a mode.

    Notes
    -----
    ``prod R_k + sum I_k R_k + O R_{N+1}`` parameters (Eq. 12), and ``O`` for the bias. The paper also found batch norm
    before and after the layer useful; put MONAI's or torch's around it.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        rank: Sequence[int],
        bias: bool = True,
        dropout: float = 0.0,
        unit_factors: bool = False,
    ) -> None:
        super().__init__()
        self.input_shape, self.outputs, self.rank = tuple(input_shape), outputs, tuple(rank)
        sizes = (*self.input_shape, outputs)
        if len(self.rank) != len(sizes) or any(not 1 <= r <= n for r, n in zip(self.rank, sizes, strict=False)):
            raise ValueError(
                f"Tucker rank {self.rank} for a weight of modes {sizes} (input, then output): give one rank a mode, "
                "from 1 to the mode's size"
            )
        self.unit_factors = unit_factors
        self.core = nn.Parameter(torch.empty(self.rank))
        self.factors = nn.ParameterList(torch.empty(n, r) for n, r in zip(sizes, self.rank, strict=True))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.dropout = TensorDropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthonormal factors, and a core that gives the weight the scale of torch's ``Linear``.

        Modes of rank 1 start as averages: activations behind a ReLU are positive, and a random sign would cancel them.
        """
        for factor in self.factors:
            if factor.shape[1] == 1:
                nn.init.constant_(factor, factor.shape[0] ** -0.5)
            else:
                nn.init.orthogonal_(factor)
        nn.init.normal_(self.core, std=math.sqrt(self.outputs / (3 * math.prod(self.rank))))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Activation ``(B, I_0, ..., I_N)`` to ``(B, O)``."""
        check_activation(x, self.input_shape, self)
        modes = range(len(self.input_shape))
        for k in sorted(modes, key=lambda k: self.rank[k] / self.input_shape[k]):
            x = mode_product(x, self._factor(k).T, k + 1)
        core = mode_product(self.dropout(self.core, range(self.core.ndim)), self._factor(-1), len(modes))
        y = torch.tensordot(x, core, dims=len(modes))
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def weight(self) -> Tensor:
        """The dense weight ``(I_0, ..., I_N, O)``."""
        weight: Tensor = self.core
        for k in range(weight.ndim):
            weight = mode_product(weight, self._factor(k), k)
        return weight

    @classmethod
    @torch.no_grad()
    def from_linear(
        cls, linear: nn.Linear, input_shape: Sequence[int], rank: Sequence[int], **settings: float | bool
    ) -> TensorRegressionLayer:
        """A layer that starts as the Tucker decomposition of a fully connected one (paper Sec. 4.2).

        Parameters
        ----------
        linear
            Takes the flattened activation, or its global average over the spatial modes. In the second case the
            ranks of the spatial modes must be 1, and their factors start at ``1 / I_k``.
        input_shape, rank, settings
            Of the new layer.

        Raises
        ------
        ValueError
            If the linear layer takes neither, or the spatial ranks of a pooled one are not 1.
        """
        shape, pooled = linear_modes(linear, input_shape)
        wanted = tuple(rank)
        if pooled and any(r != 1 for r in wanted[1:-1]):
            raise ValueError(f"a linear layer behind average pooling has spatial ranks of 1, found rank {wanted}")
        settings.setdefault("bias", linear.bias is not None)
        layer = cls(input_shape, linear.out_features, wanted, **settings)  # type: ignore[arg-type]
        core, factors = tucker(linear.weight.T.reshape(*shape, linear.out_features), wanted)
        for k, factor in enumerate(factors):
            size = layer.factors[k].shape[0]
            if factor.shape[0] != size:  # pooled: the one entry becomes an average
                factor = factor.expand(size, 1) / size
            length = factor.norm(dim=0) if layer.unit_factors else torch.ones(factor.shape[1], dtype=factor.dtype)
            layer.factors[k].copy_(factor / length)
            core = mode_product(core, torch.diag(length), k)
        layer.core.copy_(core)
        take_bias(layer.bias, linear)
        return layer

    def _factor(self, k: int) -> Tensor:
        factor = self.factors[k]
        return nn.functional.normalize(factor, dim=0) if self.unit_factors else factor

    def extra_repr(self) -> str:
        """See ``torch.nn.Module``."""
        return f"{self.input_shape} -> {self.outputs}, rank={self.rank}, bias={self.bias is not None}"


def linear_modes(linear: nn.Linear, input_shape: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    """The modes of a linear layer's input, and whether it stands behind global average pooling.

    Raises
    ------
    ValueError
        If it takes neither the flattened activation nor its channels.
    """
    shape = tuple(input_shape)
    if linear.in_features == math.prod(shape):
        return shape, False
    if linear.in_features == shape[0]:
        return (shape[0], *[1] * (len(shape) - 1)), True
    raise ValueError(
        f"a linear layer of {linear.in_features} inputs cannot start a layer for activations {shape}: it must take all "
        f"{math.prod(shape)} values, or the {shape[0]} channels left by average pooling"
    )


def take_bias(bias: Tensor | None, linear: nn.Linear) -> None:
    """Start a layer's bias, if it has one, as that of a linear layer; zero where that has none."""
    if bias is not None:
        bias.copy_(torch.zeros_like(bias) if linear.bias is None else linear.bias)


def tucker(tensor: Tensor, rank: Sequence[int], sweeps: int = 20) -> tuple[Tensor, list[Tensor]]:
    """Tucker decomposition by higher-order orthogonal iteration, started from the higher-order SVD.

    Returns
    -------
    core, factors
        float64 ``(R_0, ...)`` and orthonormal ``(I_k, R_k)``; exact where the ranks are those of the unfoldings.
    """
    tensor = tensor.detach().double()
    modes = range(tensor.ndim)
    factors = [_leading(tensor, k, rank[k]) for k in modes]
    for _ in range(sweeps):
        for k in modes:
            small = tensor
            for j in modes:
                if j != k:
                    small = mode_product(small, factors[j].T, j)
            factors[k] = _leading(small, k, rank[k])
    core = tensor
    for k in modes:
        core = mode_product(core, factors[k].T, k)
    return core, factors


def _leading(tensor: Tensor, mode: int, rank: int) -> Tensor:
    """Leading left singular vectors ``(I, rank)`` of an unfolding; any orthonormal ones where it has fewer."""
    unfolded = tensor.movedim(mode, 0).flatten(1)
    u = torch.linalg.svd(unfolded, full_matrices=unfolded.shape[1] < rank).U
    return u[:, :rank]

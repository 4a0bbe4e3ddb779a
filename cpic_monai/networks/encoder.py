"""The local encoder: one feature vector a voxel from the small cube around it (paper Sec. 3.1, Appendix A.4)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class PatchEncoder(nn.Module):
    """Unpadded 3D convolutions that turn a cube of ``patch_size`` voxels into one vector in (0, 1).

    Parameters
    ----------
    in_channels
        Image channels (sequences, context scales).
    channels
        Channels ``n`` of the encoding; the paper's ``n_dim``.
    features
        Widths of the hidden layers; ReLU between, sigmoid last.
    kernel_size
        Of every layer; the receptive field is ``1 + layers * (kernel_size - 1)``, 9 at the paper's settings.
    pooling
        Positions along each axis whose encodings are averaged into the voxel's: the encoding of neighbouring voxels
        is then much the same, so it is smooth and of low rank. The patch grows by ``pooling - 1`` voxels.
    channel_norm
        True: :class:`ChannelNorm` before every ReLU.

    Raises
    ------
    ValueError
        If ``pooling`` is even or below 1: a patch is centred on a voxel.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 16,
        features: Sequence[int] = (5, 15, 25),
        kernel_size: int = 3,
        pooling: int = 1,
        channel_norm: bool = False,
    ) -> None:
        super().__init__()
        if pooling < 1 or pooling % 2 == 0:
            raise ValueError(f"`pooling` must be 1, 3, 5, ...: a patch is centred on a voxel; found {pooling}")
        widths = (in_channels, *features, channels)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [
                nn.Conv3d(a, b, kernel_size),
                nn.Sequential(ChannelNorm(b), nn.ReLU()) if channel_norm else nn.ReLU(),
            ]
        layers[-1] = nn.Sigmoid()
        self.layers = nn.Sequential(*layers)
        self.in_channels, self.channels, self.pooling = in_channels, channels, pooling
        self.patch_size = 1 + (len(widths) - 1) * (kernel_size - 1) + pooling - 1

    def forward(self, patches: Tensor) -> Tensor:
        """``(M, in_channels, p, p, p)`` to ``(M, channels)``."""
        # Channels last runs four times faster here: the first layers have few channels, tiny cubes and a large batch.
        hidden = patches.contiguous(memory_format=torch.channels_last_3d)
        # The sigmoid in float32 even under autocast: encodings differ from background's by little, and 0.5 plus that
        # little would be rounded away.
        last = len(self.layers) - 1
        for n, layer in enumerate(self.layers):
            hidden = layer(hidden.float() if n == last else hidden)
        return hidden.flatten(2).mean(2)

    def bytes_per_patch(self) -> int:
        """What one patch leaves behind for the backward pass, float32: inputs of all layers, and the norms' moments."""
        total, edge = self.in_channels * self.patch_size**3, self.patch_size
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):
                edge -= layer.kernel_size[0] - 1
                total += 2 * layer.out_channels * edge**3
            elif isinstance(layer, ChannelNorm):
                total += (layer.normalized_shape[0] + 2) * edge**3
        return 4 * total


class ChannelNorm(nn.LayerNorm):
    """Zero mean and unit variance over the channels of each position (layer norm, as in ConvNeXt).

    Of the usual norms the one under which an encoding depends on its own patch alone: statistics over a batch would mix
    voxels and scans, and background, which is encoded by itself, would have others; statistics over a patch's
    positions would take away how bright it is.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """``(M, C, D, H, W)``, the same."""
        # Not super().forward, which TorchScript does not know.
        last = nn.functional.layer_norm(hidden.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps)
        return last.movedim(-1, 1)


class VoxelValues(nn.Module):
    """No encoder: the voxel's own intensities are its encoding (the paper's "TT + MLP" baseline)."""

    patch_size = pooling = 1

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.in_channels = self.channels = in_channels

    def forward(self, patches: Tensor) -> Tensor:
        """``(M, in_channels, 1, 1, 1)`` to ``(M, in_channels)``."""
        return patches.flatten(1)

    def bytes_per_patch(self) -> int:
        """Of a patch itself, float32."""
        return 4 * self.in_channels

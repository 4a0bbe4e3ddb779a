"""The local decoder: from the encodings around a patch to the patch's intensities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class PatchDecoder(nn.Module):
    """Unpadded convolutions from a box of encodings to the intensities of the box less its rim.

    Parameters
    ----------
    channels
        Channels of the encoding.
    out_channels
        Image channels.
    features
        Widths of the hidden layers, each a convolution followed by ReLU; a linear layer at each voxel is last.
    kernel_size
        Of the hidden layers along each axis: 1 where a scan has one voxel (2D images), 3 elsewhere.
    gain
        Factor on the encodings.

    Attributes
    ----------
    reach
        Width of the rim along each axis, in voxels.

    Notes
    -----
    What zeros decode to is subtracted: background, whose encoding is zero, comes out as the intensity 0 that
    preprocessing gives it, though hardly any patch to learn from lies there.

    Encodings differ from background's by hundredths at first; ``gain`` brings them to the size of usual inputs. Batch
    norm would too, but its running averages lag behind an encoder that is still learning: after 30 steps on 2D
    phantoms its patches were at 16 dB in training mode and held-out ones at 8 dB in evaluation mode, below a constant.
    The paper draws a decoder (Fig. 1) without saying what it is.
    """

    def __init__(
        self,
        channels: int = 16,
        out_channels: int = 1,
        features: Sequence[int] = (32, 32),
        kernel_size: Sequence[int] = (3, 3, 3),
        gain: float = 10.0,
    ) -> None:
        super().__init__()
        a, b, c = (int(k) for k in kernel_size)
        if min(a, b, c) < 1 or not (a % 2 and b % 2 and c % 2):
            raise ValueError(f"a decoder's `kernel_size` must be odd along each axis, found {(a, b, c)}")
        self.out_channels, self.gain = out_channels, gain
        self.reach = tuple(len(features) * (k // 2) for k in (a, b, c))
        widths = (channels, *features)
        layers: list[nn.Module] = []
        for left, right in pairwise(widths):
            layers += [nn.Conv3d(left, right, (a, b, c)), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv3d(widths[-1], out_channels, 1, bias=False))

    def forward(self, encodings: Tensor) -> Tensor:
        """Encodings ``(M, channels, d, h, w)`` to intensities ``(M, out_channels, d - 2 reach, ...)``."""
        blank = encodings.new_zeros((1, encodings.shape[1], *(2 * r + 1 for r in self.reach)))
        return self.layers(self.gain * encodings) - self.layers(blank)

"""An autoencoder with a tensor train as its bottleneck (paper Fig. 1): neither encoding nor decoding is ever dense."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from cpic_monai.cross.kinds import is_values_only
from cpic_monai.networks.cpic import CPICNet
from cpic_monai.networks.decoder import PatchDecoder
from cpic_monai.networks.patch_source import LazyScan
from cpic_monai.tensor_train import TensorTrain, truncate_train
from cpic_monai.tensor_train.entries import entries

TILE = 32


class TensorTrainAutoencoder(CPICNet):
    """C-PIC's encoding, interpolated as a tensor train of low rank, and a local decoder of it.

    A scan is encoded at the cross indices alone; the train answers at any voxel; the decoder turns the encodings
    around a patch into its intensities. What is learned is an encoding that loses little by the truncation.

    Parameters
    ----------
    spatial_shape
        Voxels of every scan; ``(1, H, W)`` for 2D images, whose decoder is then two-dimensional.
    patch
        Edge of a decoded patch in voxels, odd; 1 along axes that are shorter.
    out_channels
        Image channels to decode.
    decoder_features
        Of :class:`cpic_monai.networks.decoder.PatchDecoder`.
    train_ranks
        In training each step truncates to one of these ranks, drawn at random, so that a single model decodes at all
        of them; none: always the full rank.
    settings
        Of :class:`cpic_monai.networks.CPICNet`; those of its basis and head have no effect, an autoencoder has neither.

    Attributes
    ----------
    kept_rank
        Rank that trains are truncated to in evaluation mode; None for all of ``rank``.

    Raises
    ------
    ValueError
        If ``patch`` is even, ``grid_step`` is not 1, a rank lies outside ``1 ... rank``, or the index sets give no
        train of the scan.
    """

    def __init__(
        self,
        spatial_shape: Sequence[int],
        patch: int = 5,
        out_channels: int = 1,
        decoder_features: Sequence[int] = (32, 32),
        train_ranks: Sequence[int] = (),
        **settings: Any,
    ) -> None:
        super().__init__(spatial_shape, **settings)
        if is_values_only(self.indices):
            raise ValueError("an autoencoder decodes a tensor train: index_sets is one of cohort, scan, every_voxel")
        if self.grid.step != 1:
            raise ValueError(f"`grid_step` is {self.grid.step}; an autoencoder decodes every voxel, so it must be 1")
        if patch < 1 or patch % 2 == 0:
            raise ValueError(f"`patch` is {patch}; a decoded patch is centred on a voxel, so it must be odd")
        wrong = [r for r in train_ranks if not 1 <= r <= self.rank]
        if wrong:
            raise ValueError(f"`train_ranks` {wrong} lie outside 1 ... {self.rank}, the rank of the encoding")
        del self.basis, self.head
        self.patch_shape = tuple(patch if n >= patch else 1 for n in self.grid.shape)
        kernel = tuple(3 if n > 1 else 1 for n in self.grid.shape)
        self.decoder = PatchDecoder(self.encoder.channels, out_channels, decoder_features, kernel)
        self.train_ranks = tuple(train_ranks)
        self.kept_rank: int | None = None

    def forward(  # type: ignore[override]
        self, image: Tensor | Sequence[LazyScan], centres: Tensor, subjects: Sequence[str] | None = None
    ) -> Tensor:
        """Decoded patches float32 ``(S, M, C, *patch_shape)``.

        Parameters
        ----------
        image
            As for :meth:`CPICNet.forward`.
        centres
            int64 ``(S, M, 3)``: the patches' middle voxels.
        subjects
            Names of the scans.
        """
        half = torch.tensor([n // 2 for n in self.patch_shape], device=centres.device)
        return self.decode(self.compress(image, subjects), centres - half, self.patch_shape)

    def compress(self, image: Tensor | Sequence[LazyScan], subjects: Sequence[str] | None = None) -> list[TensorTrain]:
        """Trains of the encodings, one a draw, truncated to ``kept_rank`` (in training: to one of ``train_ranks``)."""
        rank = self.kept_rank
        if self.training:
            drawn = torch.randint(max(1, len(self.train_ranks)), ()).item()
            rank = self.train_ranks[int(drawn)] if self.train_ranks else None
        trains = self.decompose(image, subjects)
        return trains if rank is None or rank >= self.rank else [truncate_train(train, rank) for train in trains]

    def decode(self, trains: Sequence[TensorTrain], corners: Tensor, shape: Sequence[int]) -> Tensor:
        """Intensities float32 ``(S, M, C, *shape)`` of boxes, from encodings averaged over the draws.

        Parameters
        ----------
        trains
            Of :meth:`compress`.
        corners
            int64 ``(S, M, 3)``: first voxels of the boxes.
        shape
            Voxels of a box along each axis.
        """
        reach = torch.tensor(self.decoder.reach)
        edges = [int(n) + 2 * int(r) for n, r in zip(shape, reach, strict=True)]
        offsets = torch.cartesian_prod(*(torch.arange(n) for n in edges))  # (E, 3)
        scans, count = corners.shape[:2]
        voxels = (corners.cpu() - reach)[:, :, None] + offsets
        values = self.encodings(trains, voxels.flatten(1, 2))
        boxes = values.reshape(scans * count, *edges, -1).movedim(-1, 1)
        return self.decoder(boxes).reshape(scans, count, -1, *(int(n) for n in shape))

    def encodings(self, trains: Sequence[TensorTrain], voxels: Tensor) -> Tensor:
        """What the trains say of voxels int64 ``(S, N, 3)``, float32 ``(S, N, channels)``; outside the scan zero."""
        limit = torch.tensor(self.grid.shape)
        inside = ((voxels >= 0) & (voxels < limit)).all(-1, keepdim=True)
        digits = self.grid.digits(self.grid.encode(voxels.clamp(min=torch.zeros_like(limit), max=limit - 1)))
        device = trains[0].cores[0].device
        drawn = [entries(train.to(torch.float32), digits.to(device)) for train in trains]
        return torch.stack(drawn).mean(0) * inside.to(device)

    @torch.no_grad()
    def reconstruct(self, trains: Sequence[TensorTrain], start: Sequence[int], stop: Sequence[int]) -> Tensor:
        """A half-open box of each scan, decoded tile by tile: a slice to look at. float32 ``(S, C, *(stop - start))``.

        Raises
        ------
        ValueError
            If the box is empty or reaches out of the scan.
        """
        if any(not 0 <= a < b <= n for a, b, n in zip(start, stop, self.grid.shape, strict=True)):
            raise ValueError(f"box {tuple(start)} to {tuple(stop)} is empty or leaves the scan of {self.grid.shape}")
        size = tuple(b - a for a, b in zip(start, stop, strict=True))
        out = torch.empty((trains[0].batch, self.decoder.out_channels, *size))
        for first in product(*(range(0, n, TILE) for n in size)):
            tile = [min(TILE, n - a) for n, a in zip(size, first, strict=True)]
            corner = torch.tensor(start) + torch.tensor(first)
            part = self.decode(trains, corner.expand(trains[0].batch, 1, 3), tile)[:, 0]
            a, b, c = (slice(f, f + t) for f, t in zip(first, tile, strict=True))
            out[:, :, a, b, c] = part.float().cpu()
        return out

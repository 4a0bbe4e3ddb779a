"""The prediction of a fitted network as a static graph of plain tensor operations, for TorchScript and ONNX."""

# No `from __future__ import annotations` here: TorchScript reads the types of attributes, not their names.
import copy

import torch
from torch import Tensor, nn

from cpic_monai.cross.bank import CohortIndexSets, EveryVoxel, ScanIndexSets
from cpic_monai.cross.kinds import is_values_only
from cpic_monai.cross.random_voxels import RandomVoxels
from cpic_monai.export.static_linear import LinearProjection
from cpic_monai.export.static_trains import TrainProjection
from cpic_monai.networks import CanonicalBasis, CPICNet
from cpic_monai.networks.heads import LogitHead, ordered


class StaticCPIC(nn.Module):
    """A fitted :class:`cpic_monai.networks.CPICNet` whose scans are all looked at in the same voxels, for prediction.

    Voxels and the whole way from encodings to features are buffers: :class:`TrainProjection` where each scan is
    interpolated by itself (``index_sets="cohort"``), :class:`LinearProjection` where all share one interpolation
    (``tangent``) or there is none. Batch sizes stay free.

    Parameters
    ----------
    network
        Fitted. Its weights are copied.

    Raises
    ------
    TypeError
        If each scan has index sets of its own, every voxel is looked at, the cohort's sets are oversampled, or features
        are those of a tensor regression layer.
    ValueError
        If the network was never fitted, or its basis belongs to another number of draws.
    """

    voxels: Tensor
    background: Tensor
    widths: Tensor

    def __init__(self, network: CPICNet) -> None:
        super().__init__()
        sets = _shared_sets(network)
        self.encoder, head = copy.deepcopy(network.encoder), copy.deepcopy(network.head)
        self.tabular, self.joint, self.tabular_features = head.tabular, head.joint, head.tabular_features
        self.register_buffer("widths", head.widths)
        self.patch_size, self.in_channels = network.patch_size, network.encoder.in_channels
        self.shape, self.scales = list(network.grid.shape), list(network.scales)
        # A cube further out than its own reach is empty wherever it lies, so that much padding is enough.
        limit = torch.tensor(self.shape) + self.patch_size // 2
        self.register_buffer("voxels", torch.minimum(sets.voxels().cpu(), limit))
        with torch.no_grad():
            weight = next(self.encoder.parameters(), torch.zeros(1))
            blank = torch.zeros(
                (1, self.in_channels, *(self.patch_size,) * 3), dtype=weight.dtype, device=weight.device
            )
            self.register_buffer("background", self.encoder(blank))
        if is_values_only(sets):
            self.projection: nn.Module = LinearProjection(sets, network.basis, network.encoder.channels)
        else:
            self.projection = TrainProjection(sets, network.basis)
        self.to(network.device).eval()

    def forward(self, image: Tensor, tabular: Tensor | None = None, scan_index: Tensor | None = None) -> Tensor:
        """Quantiles float32 ``(R, Q)``, one row a visit, as :meth:`cpic_monai.networks.CPICNet.forward` gives them.

        Parameters
        ----------
        image
            Float32, a dense batch ``(S, C, D, H, W)`` or patches ``(S, N, C, p, p, p)`` at :attr:`voxels`.
        tabular
            Float32 ``(R, F)``; zeros (the mean) if not given.
        scan_index
            int64 ``(R,)``: each row's scan; one row a scan if not given.
        """
        patches = image if image.dim() == 6 else self.cubes(image)
        features = self.features(self.encode(patches)).to(torch.float32)
        if scan_index is not None:
            features = features.index_select(0, scan_index)
        if self.tabular is not None:
            if tabular is None:
                tabular = torch.zeros(
                    (features.shape[0], self.tabular_features), dtype=features.dtype, device=features.device
                )
            features = torch.cat([features, self.tabular(tabular.to(features.dtype))], dim=1)
        return ordered(self.joint(features), self.widths)

    def cubes(self, image: Tensor) -> Tensor:
        """Patches ``(S, N, C, p, p, p)`` of a dense batch ``(S, C, D, H, W)``; outside of it everything is zero."""
        size, reach = self.patch_size, self.patch_size // 2
        if list(image.shape[2:]) != self.shape:
            raise ValueError("the image's shape is not the model's: see spatial_shape in metadata.json")
        if self.scales != [1]:
            raise ValueError("the model sees several scales, which a dense image does not hold: give patches")
        # After `reach` voxels of padding in front a cube starts at its voxel's own index.
        padded = nn.functional.pad(image, [reach, 2 * size, reach, 2 * size, reach, 2 * size])
        rows, columns = padded.shape[3], padded.shape[4]
        step = torch.arange(size, device=image.device)
        inside = ((step[:, None, None] * rows + step[:, None]) * columns + step).reshape(-1)
        corner = (self.voxels[:, 0] * rows + self.voxels[:, 1]) * columns + self.voxels[:, 2]
        places = (corner[:, None] + inside).reshape(-1)
        cubes = padded.flatten(2).index_select(2, places)
        return cubes.reshape(image.shape[0], self.in_channels, -1, size, size, size).transpose(1, 2)

    def encode(self, patches: Tensor) -> Tensor:
        """Encodings float64 ``(S, N, channels)`` of patches, minus that of empty background."""
        size = self.patch_size
        flat = patches.to(self.background.dtype).reshape(-1, self.in_channels, size, size, size)
        values = self.encoder(flat) - self.background
        return values.reshape(patches.shape[0], self.voxels.shape[0], -1).to(torch.float64)

    def features(self, values: Tensor) -> Tensor:
        """Scan features float64 ``(S, rank)`` of encodings ``(S, N, channels)``."""
        return self.projection(values)


class ScriptableCPICNet(CPICNet):
    """The network as prediction uses it: ``torch.jit.script``, and with it MONAI's ``ckpt_export``, can export it."""

    def __prepare_scriptable__(self) -> nn.Module:
        return StaticCPIC(self)


def _shared_sets(network: CPICNet) -> CohortIndexSets | RandomVoxels:
    """The network's index sets, if they and its basis can be written as a static graph."""
    sets = network.indices
    if isinstance(sets, ScanIndexSets | EveryVoxel):
        why = {
            ScanIndexSets: "(index_sets 'scan') each scan's voxels are chosen while it is read, by comparing values",
            EveryVoxel: "(index_sets 'every_voxel') the TT-SVD of every voxel is no fixed sequence of products",
        }[type(sets)]
        raise TypeError(
            f"this network cannot be exported: {why}. Train with --index_sets cohort, or predict in Python with "
            "configs/inference.json"
        )
    if not is_values_only(sets) and sets.rows != sets.rank:
        raise TypeError(
            f"this network cannot be exported: its index sets are larger than the rank ({sets.rows} and {sets.rank}), "
            "and the truncation to the rank is an SVD, which ONNX does not know: train with oversampling 1"
        )
    if isinstance(network.head, LogitHead):
        raise TypeError(
            "this network cannot be exported: its head gives logits of classes or a log hazard, and only quantiles are "
            "supported; predict in Python"
        )
    if not isinstance(network.basis, CanonicalBasis):
        raise TypeError(
            "this network cannot be exported: only the canonical basis is supported (`projection` basis), this one has "
            "a tensor regression layer (trl); predict in Python with configs/inference.json"
        )
    if not network.basis.scans:
        raise ValueError("this network cannot be exported: it was never fitted; load a checkpoint first")
    if len(network.basis.trains) != sets.draws:
        raise ValueError(
            f"this network cannot be exported: {sets.draws} draws of index sets meet a basis of "
            f"{len(network.basis.trains)}; fit the basis after changing the draws"
        )
    return sets

"""The dense baseline: a 3D ResNet over the whole scan, under C-PIC's trainer, head and evaluation."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cpic_monai.networks.basis import CanonicalBasis
from cpic_monai.networks.heads import QuantileHead
from cpic_monai.networks.scan_network import ScanNetwork
from cpic_monai.networks.tensor_contraction import TensorContractionLayer
from cpic_monai.networks.tensor_regression import TensorRegressionLayer
from cpic_monai.networks.tensor_train_layer import TensorTrainRegressionLayer
from cpic_monai.tensor_train import TensorTrain

RESNETS = (10, 18, 34, 50)
PROJECTIONS = ("linear", "trl", "basis")


class ScanResNet(ScanNetwork):
    """MONAI's 3D ResNet, a projection to ``rank`` scan features, and the quantile head of C-PIC.

    It has the parts of :class:`cpic_monai.networks.CPICNet` (encoder, trains, basis, head), so recipes, inferers,
    handlers and reports treat both alike. A "train" here is the last activation as a tensor train of one mode.

    Parameters
    ----------
    spatial_shape
        Voxels of every scan.
    depth
        10, 18, 34 or 50.
    in_channels
        Image channels.
    scales
        Context scales of C-PIC's patches; a ResNet sees the view itself, ``(1,)``.
    rank
        Scan features that the head sees.
    projection
        From the activation to the features. ``linear``: global average pooling and a fully connected layer, as in any
        ResNet. ``trl``: a tensor regression layer instead of both, with batch norm before and after it (Tensor
        Regression Networks, Sec. 4). ``basis``: the canonical basis of pooled activations, for recipe ``closed_form``.
    trl_rank
        A sequence: Tucker rank, channels first, output last; spatial ranks of 1 are joint spatial pooling. A number:
        the layer's weight is a tensor train of that rank. Default: Tucker of 32 channels and joint spatial pooling.
    trl_dropout
        Probability of tensor dropout in the TRL.
    contraction
        Size ``(R_1, R_2, R_3, R_4)`` of a tensor contraction layer before the TRL; none by default.
    conv1_size, conv1_stride
        Kernel and stride of the first layer.
    widen
        Factor on the width of every layer (64 to 512 channels at 1).
    tabular_features, tabular_hidden, joint_hidden, quantiles, noise, batch_norm
        Of the head, see :class:`cpic_monai.networks.QuantileHead`.

    Raises
    ------
    ValueError
        For an unknown depth or projection, other scales, or a TRL rank that does not fit the activation.
    """

    #: No index sets: handlers that choose voxels leave this network alone.
    indices = None

    def __init__(
        self,
        spatial_shape: Sequence[int],
        depth: int = 34,
        in_channels: int = 1,
        scales: Sequence[int] = (1,),
        rank: int = 10,
        projection: str = "linear",
        trl_rank: int | Sequence[int] | None = None,
        trl_dropout: float = 0.0,
        contraction: Sequence[int] | None = None,
        conv1_size: int = 7,
        conv1_stride: int = 2,
        widen: float = 1.0,
        tabular_features: int = 1,
        tabular_hidden: Sequence[int] = (500, 100),
        joint_hidden: Sequence[int] = (100, 20),
        quantiles: int = 3,
        noise: float = 0.2,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if depth not in RESNETS:
            raise ValueError(f"depth {depth!r} is none of {', '.join(map(str, RESNETS))}")
        if projection not in PROJECTIONS:
            raise ValueError(f"projection {projection!r} is none of {', '.join(PROJECTIONS)}")
        if tuple(scales) != (1,):
            raise ValueError(f"config key `scales` is {list(scales)}: a ResNet sees the view itself, set it to [1]")
        self.spatial_shape, self.in_channels, self.rank = tuple(spatial_shape), in_channels, rank
        self.projection, self.moving_basis = projection, False
        from monai.networks import nets  # takes 300 MB and seconds, and C-PIC itself needs none of it

        whole = getattr(nets, f"resnet{depth}")(
            spatial_dims=3,
            n_input_channels=in_channels,
            conv1_t_size=conv1_size,
            conv1_t_stride=conv1_stride,
            widen_factor=widen,
            feed_forward=False,
        )
        # MONAI's forward is its children in turn; pooling and what follows is the projection's.
        self.encoder = nn.Sequential(
            OrderedDict((name, part) for name, part in whole.named_children() if name not in ("avgpool", "fc"))
        )
        shape = self._activation_shape()
        if projection == "basis":
            self.basis = CanonicalBasis(rank)
        elif projection == "linear":
            self.basis = LearnedProjection(nn.Sequential(nn.Flatten(), nn.Linear(shape[0], rank)), (shape[0], 1, 1, 1))
        else:
            self.basis = LearnedProjection(_regression(shape, rank, trl_rank, trl_dropout, contraction), shape)
        self.head = QuantileHead(rank, tabular_features, tabular_hidden, joint_hidden, quantiles, noise, batch_norm)

    def forward(
        self,
        image: Tensor,
        tabular: Tensor | None = None,
        scan_index: Tensor | None = None,
        subjects: Sequence[str] | None = None,
    ) -> Tensor:
        """Quantiles float32 ``(R, Q)``, one row a visit.

        Parameters
        ----------
        image
            Dense batch ``(S, C, D, H, W)`` (:class:`cpic_monai.transforms.dense.DenseScand`).
        tabular, scan_index, subjects
            As :meth:`cpic_monai.networks.CPICNet.forward`.
        """
        return self.respond(self.decompose(image, subjects), tabular, scan_index)

    def decompose(self, image: Tensor, subjects: Sequence[str] | None = None) -> list[TensorTrain]:
        """The last activation as one train of one mode, float64 ``(S, 1, N, channels)``; ``N`` is 1 where it is pooled.

        Raises
        ------
        TypeError, ValueError
            If the image is no dense batch of the network's shape.
        """
        if not isinstance(image, Tensor):
            raise TypeError("a ResNet looks at every voxel: put DenseScand into `sampling` (configs/resnet.json does)")
        wanted = (self.in_channels, *self.spatial_shape)
        if tuple(image.shape[1:]) != wanted:
            raise ValueError(
                f"image has shape {tuple(image.shape)}; expected (S, {', '.join(map(str, wanted))}): make `Resized` "
                "and the network agree on `spatial_shape`"
            )
        values = self.encoder(image.to(self.device, torch.float32)).flatten(2)
        if self.projection != "trl":
            values = values.mean(2, keepdim=True)
        return [TensorTrain((values.transpose(1, 2)[:, None].double(),))]

    @torch.no_grad()
    def _activation_shape(self) -> tuple[int, ...]:
        """Channels and spatial size of the last activation, without computing it."""
        body = copy.deepcopy(self.encoder).to("meta").eval()
        return tuple(body(torch.empty((1, self.in_channels, *self.spatial_shape), device="meta")).shape[1:])


class LearnedProjection(nn.Module):
    """A layer from activations to features, in the place of :class:`cpic_monai.networks.CanonicalBasis`.

    Parameters
    ----------
    layer
        Activations float32 ``(B, *shape)`` to features ``(B, rank)``.
    shape
        Of an activation: channels, then spatial sizes.
    """

    #: See :attr:`cpic_monai.networks.CanonicalBasis.learned`.
    learned = True

    def __init__(self, layer: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.layer, self.shape = layer, tuple(shape)

    def forward(self, trains: Sequence[TensorTrain]) -> Tensor:
        """Features float32 ``(B, rank)`` of activations given as one train of one mode."""
        values = trains[0].cores[0][:, 0].transpose(1, 2)
        return self.layer(values.reshape(-1, *self.shape).float())

    def fit(self, trains: Sequence[TensorTrain], dual: Any = None, principal: float = 1.0) -> Tensor:
        """Features as they are: this projection learns by its gradient (recipe ``paper``).

        Raises
        ------
        ValueError
            If a regression's directions are to be taken over (recipe ``closed_form``).
        """
        if dual is not None:
            raise ValueError("recipe 'closed_form' fits a basis: use `projection: basis`, or recipe 'paper'")
        with torch.no_grad():
            return self(trains)

    def update(self, trains: Sequence[TensorTrain]) -> None:
        """Nothing moves but by the gradient."""


def _regression(
    shape: tuple[int, ...],
    rank: int,
    trl_rank: int | Sequence[int] | None,
    dropout: float,
    contraction: Sequence[int] | None,
) -> nn.Sequential:
    """Batch norm, (contraction, batch norm,) tensor regression, batch norm."""
    layers: list[nn.Module] = [nn.BatchNorm3d(shape[0])]
    if contraction is not None:
        layers += [TensorContractionLayer(shape, contraction), nn.BatchNorm3d(contraction[0])]
        shape = tuple(contraction)
    if isinstance(trl_rank, int):
        layers.append(TensorTrainRegressionLayer(shape, rank, trl_rank, dropout=dropout))
    else:
        pooled = (min(32, shape[0]), *[1] * (len(shape) - 1), rank)
        layers.append(TensorRegressionLayer(shape, rank, pooled if trl_rank is None else trl_rank, dropout=dropout))
    return nn.Sequential(*layers, nn.BatchNorm1d(rank))

"""What follows a scan's trains, alike for every network: projection, then the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cpic_monai.networks.heads import QuantileHead
from cpic_monai.tensor_train import TensorTrain


class ScanNetwork(nn.Module):
    """Base of networks from scans to tensor trains (``decompose``), to features, to quantiles.

    Attributes
    ----------
    basis
        From trains to scan features ``(S, rank)``: a canonical basis or a learned projection.
    head
        From features and tabular values to quantiles.
    moving_basis
        Whether the basis takes up every training batch.
    """

    basis: Any
    head: QuantileHead
    moving_basis: bool

    @property
    def device(self) -> torch.device:
        """Where it computes; that of the head where there is no encoder to learn."""
        return next(self.parameters()).device

    def respond(
        self, trains: Sequence[TensorTrain], tabular: Tensor | None = None, scan_index: Tensor | None = None
    ) -> Tensor:
        """Trains of a batch, one a draw, to quantiles float32 ``(R, Q)``; see :meth:`CPICNet.forward`."""
        if self.training and self.moving_basis:
            self.basis.update(trains)
        return self.predict(self.basis(trains), tabular, scan_index)

    def predict(self, features: Tensor, tabular: Tensor | None = None, scan_index: Tensor | None = None) -> Tensor:
        """The head alone: scan features ``(S, rank)`` to quantiles ``(R, Q)``."""
        if scan_index is not None:
            features = features[scan_index]
        return self.head(features.float(), tabular)

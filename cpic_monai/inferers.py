"""How an engine calls the network: MONAI's ``inferer(inputs, network)`` seam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.inferers import Inferer
from torch import Tensor

from cpic_monai.networks import CPICNet, LeaveOneOutRidge
from cpic_monai.networks.basis import mean_inner


class QuantileInferer(Inferer):
    """Quantiles ``(R, Q)`` of a batch of scans; the inferer of evaluation, prediction and the joint recipe."""

    def __call__(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """See :meth:`cpic_monai.networks.CPICNet.forward`."""
        return network(inputs, *args, **kwargs)


class LeaveOneOutInferer(Inferer):
    """Predictions of each scan's visits by the batch's other scans (recipe ``closed_form``).

    Parameters
    ----------
    ridge
        Holds the learned penalty and kernel weights; its parameters go to the optimizer beside the network's.
    """

    def __init__(self, ridge: LeaveOneOutRidge) -> None:
        self.ridge = ridge

    def __call__(  # type: ignore[override]
        self,
        inputs: Any,
        network: CPICNet,
        *,
        tabular: Tensor,
        scan_index: Tensor,
        label: Tensor,
        subjects: Sequence[str] | None = None,
    ) -> Tensor:
        """Normalised predictions float32 ``(R, 1)``."""
        trains = network.decompose(inputs, subjects)
        return self.ridge(mean_inner(trains, trains), tabular, scan_index, label).float()

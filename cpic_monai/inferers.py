"""How an engine calls the network: MONAI's ``inferer(inputs, network)`` seam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.inferers import Inferer
from torch import Tensor

from cpic_monai.distributed import gather_trains
from cpic_monai.networks import CPICNet, LeaveOneOutRidge
from cpic_monai.networks.basis import mean_inner


class QuantileInferer(Inferer):
    """Quantiles ``(R, Q)`` of a batch of scans; the inferer of evaluation and prediction."""

    def __call__(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """See :meth:`cpic_monai.networks.CPICNet.forward`."""
        return network(inputs, *args, **kwargs)


class JointInferer(QuantileInferer):
    """Quantiles of a training batch (recipe ``paper``), which may be spread over several processes.

    Each process encodes its own scans; trains are gathered, so that the moving basis and the head (its noise and batch
    norm too) are those of one process that holds the whole batch.
    """

    def __call__(  # type: ignore[override]
        self,
        inputs: Any,
        network: CPICNet,
        *,
        tabular: Tensor,
        scan_index: Tensor,
        subjects: Sequence[str] | None = None,
    ) -> Tensor:
        """Quantiles ``(R, Q)`` of all processes' visits, which ``tabular`` and ``scan_index`` describe."""
        return network.respond(gather_trains(network.decompose(inputs, subjects)), tabular, scan_index)


class LeaveOneOutInferer(Inferer):
    """Predictions of each scan's visits by the batch's other scans (recipe ``closed_form``).

    The batch is that of all processes together: each encodes its own scans, and their trains are gathered.

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
        """Normalised predictions float32 ``(R, 1)`` of all processes' visits, which the rows given describe."""
        trains = gather_trains(network.decompose(inputs, subjects))
        return self.ridge(mean_inner(trains, trains), tabular, scan_index, label).float()

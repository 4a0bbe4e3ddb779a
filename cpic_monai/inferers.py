"""How an engine calls the network: MONAI's ``inferer(inputs, network)`` seam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.inferers import Inferer
from torch import Tensor, nn

from cpic_monai.cross.bank import CohortIndexSets
from cpic_monai.cross.held_out import held_out_error
from cpic_monai.distributed import gather_rows, gather_trains
from cpic_monai.networks import CPICNet, LeaveOneOutRidge
from cpic_monai.networks.basis import mean_inner
from cpic_monai.tensor_train import TensorTrain


class LowRankTerm:
    """The error at held-out voxels (:func:`cpic_monai.cross.held_out.held_out_error`) as a term of the training loss.

    The inferer of a recipe lets it decompose the batch, which is where the error is known; :meth:`added_to` gives the
    loss that takes it up. Both halves are one step of MONAI's trainer: inferer, then loss.

    Parameters
    ----------
    weight
        Of the error, averaged over scans. With 0 the term is not computed, and training is what it is without.
    network, draws
        What the term asks for: index sets of the cohort, and at least two draws of them to learn on.

    Raises
    ------
    ValueError
        If the weight is negative, or not 0 while the network or ``draws`` cannot give held-out voxels.
    """

    def __init__(self, weight: float, network: CPICNet, draws: int) -> None:
        if not weight >= 0:
            raise ValueError(f"config key `low_rank_weight` must be at least 0, found {weight}")
        sets = type(getattr(network, "indices", None))
        if weight and sets is not CohortIndexSets:
            raise ValueError(
                f"config key `low_rank_weight` is {weight}, which needs `index_sets` cohort, found {sets.__name__}: "
                "only there do all draws look at every scan; set `low_rank_weight` to 0 or change `index_sets`"
            )
        if weight and draws < 2:
            raise ValueError(
                f"config key `low_rank_weight` is {weight}, which needs `training_draws` of at least 2, found {draws}: "
                "a draw's voxels are held out from the others; raise `training_draws` or set `low_rank_weight` to 0"
            )
        self.weight = weight
        #: The last batch's error, for logging.
        self.last: Tensor | None = None
        self._pending: Tensor | None = None

    def decompose(self, network: CPICNet, image: Any, subjects: Sequence[str] | None = None) -> list[TensorTrain]:
        """As :meth:`cpic_monai.networks.CPICNet.decompose`; the error of this batch is kept for the loss."""
        if not self.weight:
            return network.decompose(image, subjects)
        sets = network.indices
        assert isinstance(sets, CohortIndexSets)  # of the constructor's checks
        values = network.values(image)
        trains = network.interpolate(values, subjects)
        error = held_out_error(trains, sets.split(values), [plan.codes[0] for plan in sets.plans], sets.grid)
        self._pending = gather_rows(error, "errors at held-out voxels").mean()
        self.last = self._pending.detach()
        return trains

    def added_to(self, loss: nn.Module) -> nn.Module:
        """A loss of the same arguments with the term added; ``loss`` itself with a weight of 0."""
        return PenalisedLoss(loss, self) if self.weight else loss

    def take(self) -> Tensor:
        """The error of the batch decomposed last, scalar, once.

        Raises
        ------
        RuntimeError
            If no batch was decomposed since the last time: inferer and loss are not those of one recipe.
        """
        if self._pending is None:
            raise RuntimeError(
                "no batch was decomposed for this loss: take trainer#inferer and trainer#loss_function from one recipe"
            )
        error, self._pending = self._pending, None
        return error


class PenalisedLoss(nn.Module):
    """A recipe's loss plus the weighted :class:`LowRankTerm`."""

    def __init__(self, loss: nn.Module, term: LowRankTerm) -> None:
        super().__init__()
        self.loss, self.term = loss, term

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Scalar."""
        loss = self.loss(pred, target)
        return loss + self.term.weight * self.term.take().to(loss)


class QuantileInferer(Inferer):
    """Quantiles ``(R, Q)`` of a batch of scans; the inferer of evaluation and prediction."""

    def __call__(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """See :meth:`cpic_monai.networks.CPICNet.forward`."""
        return network(inputs, *args, **kwargs)


class JointInferer(QuantileInferer):
    """Quantiles of a training batch (recipe ``paper``), which may be spread over several processes.

    Each process encodes its own scans; trains are gathered, so that the moving basis and the head (its noise and batch
    norm too) are those of one process that holds the whole batch.

    Parameters
    ----------
    low_rank
        Term of the loss that the batch's decomposition gives; none by default.
    """

    def __init__(self, low_rank: LowRankTerm | None = None) -> None:
        self.low_rank = low_rank

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
        return network.respond(_decompose(self.low_rank, network, inputs, subjects), tabular, scan_index)


class LeaveOneOutInferer(Inferer):
    """Predictions of each patient's visits by the batch's other patients (recipe ``closed_form``).

    The batch is that of all processes together: each encodes its own scans, and their trains are gathered.

    Parameters
    ----------
    ridge
        Holds the learned penalty and kernel weights; its parameters go to the optimizer beside the network's.
    low_rank
        Term of the loss that the batch's decomposition gives; none by default.
    """

    def __init__(self, ridge: LeaveOneOutRidge, low_rank: LowRankTerm | None = None) -> None:
        self.ridge, self.low_rank = ridge, low_rank

    def __call__(  # type: ignore[override]
        self,
        inputs: Any,
        network: CPICNet,
        *,
        tabular: Tensor,
        scan_index: Tensor,
        label: Tensor,
        group: Tensor | None = None,
        subjects: Sequence[str] | None = None,
    ) -> Tensor:
        """Normalised predictions float32 ``(R, 1)`` of all processes' visits, which the rows given describe."""
        trains = _decompose(self.low_rank, network, inputs, subjects)
        return self.ridge(mean_inner(trains, trains), tabular, scan_index, label, group).float()


def _decompose(
    term: LowRankTerm | None, network: CPICNet, inputs: Any, subjects: Sequence[str] | None
) -> list[TensorTrain]:
    """Trains of all processes' scans, one a draw."""
    return gather_trains(
        network.decompose(inputs, subjects) if term is None else term.decompose(network, inputs, subjects)
    )

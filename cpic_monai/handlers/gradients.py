"""One set of weights in all processes: equal at the start, and moved by the same gradient in every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import nn
from torch.optim import Optimizer

from cpic_monai.distributed import average_gradients, broadcast_module


class AverageGradients:
    """Average gradients over processes after every backward pass; broadcast the first process's weights at the start.

    Done here and not by ``DistributedDataParallel`` because the closed-form recipe calls the network's ``decompose``,
    not its ``forward``, and learns the ridge outside of the network; because the basis changes in size between epochs;
    and because the loss is one of the whole batch, not a mean of the processes' losses
    (:func:`cpic_monai.distributed.gather_rows`). It runs before the gradient scaler of mixed precision looks for
    infinities, so that all processes skip the same steps.

    Parameters
    ----------
    optimizer
        Whose parameters' gradients are averaged.
    modules
        To be made equal at the start: the network, and what else learns.
    """

    def __init__(self, optimizer: Optimizer, modules: Sequence[nn.Module]) -> None:
        self.optimizer, self.modules = optimizer, list(modules)

    def attach(self, engine: Engine) -> None:
        """Attach to MONAI's ``SupervisedTrainer``."""
        engine.add_event_handler(Events.STARTED, self.equalise)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def equalise(self) -> None:
        """Weights and buffers of the first process for all."""
        for module in self.modules:
            broadcast_module(module)

    def __call__(self) -> None:
        """Average now."""
        average_gradients(self._parameters())

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self.optimizer.param_groups:
            yield from group["params"]

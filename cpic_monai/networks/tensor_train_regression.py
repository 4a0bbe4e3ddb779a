"""Tensor regression inside C-PIC: scan features by learned weights in tensor-train form, for the canonical basis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cpic_monai.networks.basis import CanonicalBasis
from cpic_monai.networks.tensor_dropout import TensorDropout
from cpic_monai.tensor_train import TensorTrain, inner, round_train

SLACK = 3


class TensorTrainRegression(nn.Module):
    """Features ``f_k = <E, W_k> + b_k`` of encodings ``E``, with weights ``W_k`` that are learned tensor trains.

    The tensor regression layer ("Tensor Regression Networks", Eq. 8) in the format that encodings have here, so that
    the inner product contracts core by core and nothing dense is formed. It stands where
    :class:`cpic_monai.networks.CanonicalBasis` does and has its methods. What differs: the weights are parameters,
    moved by the optimizer, and their number does not grow with the number of scans.

    Parameters
    ----------
    mode_sizes
        Modes ``n_1, ..., n_K`` of the trains.
    channels
        Of the encoding; the trains' free last bond.
    rank
        Largest bond of a weight.
    features
        Features a scan.
    dropout
        Probability of :class:`cpic_monai.networks.TensorDropout` on the inner bonds.

    Raises
    ------
    ValueError
        If a size is below 1.

    Notes
    -----
    ``features * (1 + sum_k r_{k-1} n_k r_k)`` parameters with ``r_0 = 1`` and ``r_K = channels``. Weights are random
    at first. The first scans seen (:meth:`update` or :meth:`fit`) replace them by the principal directions of these
    scans, truncated to ``rank``: random directions of a space of thousands of voxels tell nothing of a scan.
    """

    started: Tensor

    def __init__(
        self, mode_sizes: Sequence[int], channels: int, rank: int, features: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if min((*mode_sizes, channels, rank, features)) < 1:
            raise ValueError(
                f"mode sizes {tuple(mode_sizes)}, channels {channels}, rank {rank} and features {features} must be at "
                "least 1"
            )
        self.mode_sizes, self.channels, self.rank, self.features = tuple(mode_sizes), channels, rank, features
        sizes = self.mode_sizes
        inside = [min(rank, math.prod(sizes[:k]), math.prod(sizes[k:]) * channels) for k in range(1, len(sizes))]
        self.ranks = (1, *inside, channels)
        self.cores = nn.ParameterList(
            torch.empty(features, self.ranks[k], n, self.ranks[k + 1]) for k, n in enumerate(sizes)
        )
        self.bias = nn.Parameter(torch.zeros(features))
        self.dropout = TensorDropout(dropout)
        self.register_buffer("started", torch.tensor(False))
        self.reset_parameters()

    @property
    def scans(self) -> int:
        """Scans held: none, the weights hold what they told."""
        return 0

    @property
    def learned(self) -> bool:
        """Whether the weights move by their gradient alone: once they were started from scans."""
        return bool(self.started)

    def reset_parameters(self) -> None:
        """Random weights of unit norm (in expectation), no bias; the next scans seen replace them."""
        for core in self.cores:
            nn.init.normal_(core, std=(core.shape[2] * core.shape[3]) ** -0.5)
        nn.init.zeros_(self.bias)
        self.started.fill_(False)

    def weights(self) -> TensorTrain:
        """The weights ``W_k`` as one batch of trains; with dropout in training."""
        last = len(self.cores) - 1
        return TensorTrain(tuple(c if k == last else self.dropout(c, [3]) for k, c in enumerate(self.cores)))

    def forward(self, trains: Sequence[TensorTrain]) -> Tensor:
        """Features ``(B, features)`` in the trains' dtype, averaged over draws of index sets."""
        weights = self.weights().to(trains[0].cores[0])
        products = torch.stack([inner(train, weights) for train in trains]).mean(0)
        return products + self.bias.to(products)

    @torch.no_grad()
    def fit(self, trains: Sequence[TensorTrain], dual: Tensor | None = None, principal: float = 1.0) -> Tensor:
        """Start from these scans, unless the weights have been learning already; returns features ``(B, features)``.

        Parameters
        ----------
        trains, dual, principal
            Of :meth:`cpic_monai.networks.CanonicalBasis.fit`. Directions found by a regression (``dual``) always
            replace the weights.
        """
        if dual is None and bool(self.started):
            return self(trains)
        trains = [t.detach() for t in trains]
        basis = CanonicalBasis(self.features).to(trains[0].cores[0].device)
        basis.fit(trains, dual, principal)
        # Features of the basis are linear in the train: (<E, B_j> - mean_j <E, B_j> - centre_j) summed with vectors_j.
        weight = (basis.vectors - basis.vectors.mean(0)).to(trains[0].cores[0]) / len(trains)
        parts = [weighted_sum(train, weight, self.rank) for train in trains]
        total = parts[0] if len(parts) == 1 else round_train(_add(parts), self.rank)
        self._take(total)
        self.bias.copy_(-basis.centre @ basis.vectors)
        self.started.fill_(True)
        return self(trains)

    def update(self, trains: Sequence[TensorTrain]) -> None:
        """Start from the first batch; later batches move the weights by their gradient alone."""
        if not bool(self.started):
            self.fit(trains)

    def _take(self, train: TensorTrain) -> None:
        """Copy a train into the parameters, its norm spread evenly over the cores.

        A batch of B scans, centred, has B - 1 directions; features beyond are zero in one of their cores. The others
        keep their size, or no gradient would ever get through to that one.
        """
        norms = torch.stack([core.flatten(1).norm(dim=1) for core in train.cores])
        norms = torch.where(norms <= 1e-12 * norms.amax(0), 1.0, norms)
        level = norms.log().mean(0).exp()
        for own, core, norm in zip(self.cores, train.cores, norms, strict=True):
            core = core * (level / norm)[:, None, None, None]
            # A bond that the scans do not fill stays random on its left and zero on its right side: it can learn.
            own[:, core.shape[1] :] = 0
            own[:, : core.shape[1], :, : core.shape[3]] = core.to(own)


def weighted_sum(train: TensorTrain, weights: Tensor, rank: int) -> TensorTrain:
    """Sums ``sum_j weights[j, f] train_j`` of a batch ``(B,)``, one for each column ``f``, truncated to ``rank``.

    Trains are added in pairs and rounded to three times the rank in between, which keeps the cost linear in ``B``.
    """
    count, columns = weights.shape
    first, *others = train.cores
    # One batch of columns x trains; the weight goes into the first core.
    cores = [(weights.T[:, :, None, None, None] * first).flatten(0, 1)]
    cores += [core.repeat(columns, 1, 1, 1) for core in others]
    summed = TensorTrain(tuple(cores))
    while count > 1:
        grouped = [core.unflatten(0, (columns, count)) for core in summed.cores]
        half = count // 2
        pair = _add(
            [TensorTrain(tuple(c[:, n * half : (n + 1) * half].flatten(0, 1) for c in grouped)) for n in (0, 1)]
        )
        if count % 2:  # the odd one joins a pair's bond, so that all bonds stay alike
            odd = [
                c[:, -1:] * (torch.arange(half, device=c.device) == 0)[None, :, None, None, None] for c in grouped[:1]
            ]
            odd += [c[:, -1:].expand(-1, half, -1, -1, -1) for c in grouped[1:]]
            pair = _add([pair, TensorTrain(tuple(c.flatten(0, 1) for c in odd))])
        count = half
        summed = round_train(pair, rank if count == 1 else SLACK * rank)
    return round_train(summed, rank)


def _add(trains: Sequence[TensorTrain]) -> TensorTrain:
    """The sum of trains of equal batch: blocks on the diagonal; the channels are shared."""
    last = len(trains[0].cores) - 1
    if last == 0:
        return TensorTrain((torch.stack([t.cores[0] for t in trains]).sum(0),))
    out = []
    for k, parts in enumerate(zip(*(t.cores for t in trains), strict=True)):
        if k == 0:
            out.append(torch.cat(parts, dim=3))
        elif k == last:
            out.append(torch.cat(parts, dim=1))
        else:
            batch, _, n, _ = parts[0].shape
            block = parts[0].new_zeros((batch, sum(p.shape[1] for p in parts), n, sum(p.shape[3] for p in parts)))
            r = s = 0
            for part in parts:
                block[:, r : r + part.shape[1], :, s : s + part.shape[3]] = part
                r, s = r + part.shape[1], s + part.shape[3]
            out.append(block)
    return TensorTrain(tuple(out))

"""The canonical basis: tensor trains to invariant features (paper Sec. 3.3), as kernel PCA on TT inner products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cpic_monai.tensor_train import TensorTrain, concatenate, inner


class CanonicalBasis(nn.Module):
    """Projects tensor trains on the principal directions of a set of basis scans.

    The paper stacks the scans' trains along a new leading mode, orthogonalises and truncates; the resulting features
    are those of kernel PCA with the Gram matrix of TT inner products, which needs no stacked train and is indifferent
    to the gauge of the cores. The basis (cores, eigenvectors) is constant in the backward pass and lives in the state
    dict, so that a checkpoint predicts on its own.

    Parameters
    ----------
    rank
        Features a scan.
    memory
        Most recent scans kept while the basis moves with every batch (the paper's cached basis).

    Notes
    -----
    A scan may come as several trains, one a draw of index sets; its inner products are averaged over the draws.
    """

    vectors: Tensor
    centre: Tensor
    #: Nothing here moves by a gradient: it is fitted to scans.
    learned = False

    def __init__(self, rank: int, memory: int = 64) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"the basis needs at least one direction, found rank {rank}")
        self.rank, self.memory = rank, memory
        self.register_buffer("vectors", torch.zeros((0, rank), dtype=torch.float64))
        self.register_buffer("centre", torch.zeros(0, dtype=torch.float64))
        self._names: list[list[str]] = []

    @property
    def scans(self) -> int:
        """Basis scans held; 0 before the first fit, when all features are zero."""
        return self.vectors.shape[0]

    @property
    def trains(self) -> list[TensorTrain]:
        """The basis scans' trains, one a draw."""
        return [TensorTrain(tuple(self.get_buffer(n) for n in names)) for names in self._names]

    def gram(self, trains: Sequence[TensorTrain]) -> Tensor:
        """Inner products ``(B, scans)`` with the basis scans, averaged over draws."""
        return mean_inner(trains, self.trains)

    def forward(self, trains: Sequence[TensorTrain]) -> Tensor:
        """Features ``(B, rank)``; unit variance over the basis scans."""
        if not self.scans:
            return trains[0].cores[0].new_zeros((trains[0].batch, self.rank))
        products = self.gram(trains)
        centred = products - products.mean(1, keepdim=True) - self.centre
        return centred @ self.vectors.to(centred.dtype)

    @torch.no_grad()
    def fit(self, trains: Sequence[TensorTrain], dual: Tensor | None = None, principal: float = 1.0) -> Tensor:
        """Take these scans as the basis; returns their features ``(B, rank)``.

        Without ``dual``, principal directions are rotated towards those of the basis before (orthogonal Procrustes on
        the scans given), so that a head fitted to it stays useful. With it, each has the sign that makes its largest
        feature positive: the head is to be fitted anew.

        Parameters
        ----------
        trains
            One a draw.
        dual
            Directions that a regression on these scans found, as weights of their centred inner products ``(B, m)``
            (:meth:`cpic_monai.networks.LeaveOneOutRidge.scan_effects`). They come first, at most ``rank`` of them, and
            principal directions fill the rest. They keep their own scale.
        principal
            Standard deviation over these scans of the features along principal directions.
        """
        trains = [t.detach() for t in trains]
        old = self(trains) if self.scans and dual is None else None
        products = mean_inner(trains, trains)
        row = products.mean(1)
        centred = products - row[:, None] - row[None, :] + products.mean()
        directions = _principal(centred, self.rank)
        features = centred @ directions
        directions = principal * directions @ (_signs(features) if old is None else _alignment(features, old))
        if dual is not None:
            dual = dual[:, : self.rank].to(directions)
            directions = torch.cat([dual, directions[:, : self.rank - dual.shape[1]]], dim=1)
        self._store(trains)
        self.vectors, self.centre = directions, row - products.mean()
        return centred @ directions

    @torch.no_grad()
    def update(self, trains: Sequence[TensorTrain]) -> None:
        """Let the basis move: these scans join the most recent ones, the oldest leave (paper, "Feature projection").

        Raises
        ------
        ValueError
            If the numbers of draws differ.
        """
        if self.scans:
            _check_draws(trains, self.trains)
            kept = [t[max(0, self.scans - max(self.memory - trains[0].batch, 0)) :] for t in self.trains]
            trains = [concatenate([a.to(b.cores[0]), b]) for a, b in zip(kept, trains, strict=True)]
        self.fit(trains)

    def clear(self) -> None:
        """Forget the basis."""
        self._store([])
        self.vectors, self.centre = self.vectors[:0], self.centre[:0]

    def _store(self, trains: Sequence[TensorTrain]) -> None:
        for names in self._names:
            for name in names:
                delattr(self, name)
        self._names = []
        for draw, train in enumerate(trains):
            names = [f"core_{draw}_{k}" for k in range(len(train.cores))]
            for name, core in zip(names, train.cores, strict=True):
                self.register_buffer(name, core.detach().clone())
            self._names.append(names)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Take whatever number of scans and draws the checkpoint holds."""
        if not any(key.startswith(prefix) for key in state_dict):  # a part of a checkpoint: the basis stays
            super()._load_from_state_dict(state_dict, prefix, *args)
            return
        found: dict[int, dict[int, Tensor]] = {}
        for key, value in state_dict.items():
            if key.startswith(f"{prefix}core_"):
                draw, mode = key.removeprefix(f"{prefix}core_").split("_")
                found.setdefault(int(draw), {})[int(mode)] = value
        device = self.vectors.device
        self._store([TensorTrain(tuple(found[d][k].to(device) for k in sorted(found[d]))) for d in sorted(found)])
        for name in ("vectors", "centre"):
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, torch.zeros_like(state_dict[f"{prefix}{name}"], device=device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def mean_inner(a: Sequence[TensorTrain], b: Sequence[TensorTrain]) -> Tensor:
    """Gram matrix, float64 ``(B_a, B_b)``, averaged over draws of index sets; draw ``i`` meets draw ``i``.

    Each product is contracted in the precision of the cores of ``a``.

    Raises
    ------
    ValueError
        If the numbers of draws differ.
    """
    _check_draws(a, b)
    # Few numbers, whose differences matter: float64 from here on whatever the precision of the cores.
    return torch.stack([inner(x, y.to(x.cores[0])) for x, y in zip(a, b, strict=True)]).double().mean(0)


def _check_draws(trains: Sequence[TensorTrain], basis: Sequence[TensorTrain]) -> None:
    if len(trains) != len(basis):
        raise ValueError(
            f"{len(trains)} draws of index sets meet a basis of {len(basis)}: refit the basis after changing draws"
        )


def _principal(centred: Tensor, rank: int) -> Tensor:
    """Kernel PCA: weights ``(B, rank)`` of centred inner products that give features of unit variance."""
    values, vectors = torch.linalg.eigh((centred + centred.T) / 2)
    values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    kept = values > values[0].clamp_min(1e-300) * 1e-10
    scale = torch.where(kept, len(centred) ** 0.5 / values.clamp_min(1e-300), torch.zeros_like(values))
    return nn.functional.pad(vectors * scale, (0, rank - vectors.shape[1]))


def _signs(features: Tensor) -> Tensor:
    """A sign a direction, so that equal data give equal features on every machine."""
    largest = features.gather(0, features.abs().argmax(0, keepdim=True))[0]
    return torch.diag(torch.where(largest < 0, -1.0, 1.0).to(features.dtype))


def _alignment(new: Tensor, old: Tensor) -> Tensor:
    """The rotation of the new features nearest to the old ones (orthogonal Procrustes)."""
    u, _, vh = torch.linalg.svd(new.T @ old.to(new.dtype))
    return u @ vh

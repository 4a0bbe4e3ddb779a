"""Gradient times value at the picked voxels: which of what the network looked at moved its prediction.

The network sees a scan only through the encodings at its picked voxels, so nothing else can have moved a prediction.
For each of them the derivative of the median with respect to its encoding, times what that encoding is above a
reference, is summed over channels and draws of index sets. The derivative goes through the cross-interpolation, the
inner products with the basis and the head. With the reference ``air`` an attribution is the first-order change of the
median if the voxel's surroundings, and no others, were replaced by air, with its sign turned; with ``cohort``, if they
were replaced by what the basis scans have there on average (:mod:`cpic_monai.attribution.reference`).
The median is not linear in the encodings, so attributions do not add up to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cpic_monai.attribution.reference import REFERENCES, basis_encoding
from cpic_monai.cross.bank import ScanIndexSets
from cpic_monai.networks import CPICNet
from cpic_monai.networks.heads import LogitHead
from cpic_monai.tensor_train import TensorTrain
from cpic_monai.transforms import VirtualScan


@dataclass(frozen=True)
class Explained:
    """A prediction with what it looked at.

    Attributes
    ----------
    quantiles
        Normalised quantiles float32 ``(V, Q)``, one row a visit.
    voxels
        Picked voxels of the preprocessed scan, int64 ``(N, 3)``, each once, all within the scan.
    attribution
        Attributions float64 ``(N,)`` to the median of one visit, or to its change between two; normalised like the
        quantiles. Of classes, to the log odds of one of two, or to the log probability of one of several.
    finite
        False where the derivative is not finite (TT-SVD of a scan with equal singular values); attributions are then 0.
    output
        Column of ``quantiles`` that is explained.
    """

    quantiles: Tensor
    voxels: Tensor
    attribution: Tensor
    finite: bool = True
    output: int = 0


def explain(
    network: CPICNet,
    scan: VirtualScan,
    tabular: Tensor | None = None,
    *,
    visit: int = -1,
    subject: str = "scan",
    reference: str | Tensor = "air",
    since: int | None = None,
    output: int | None = None,
) -> Explained:
    """Predict a scan's visits and attribute the median of one of them to the picked voxels.

    Parameters
    ----------
    network
        In evaluation mode; its parameters' gradients stay as they are.
    scan
        As preprocessing leaves it before patches are sampled.
    tabular
        Encoded tabular values ``(V, F)``, one row a visit; None for one row of means.
    visit
        Row whose median is attributed; the last one by default.
    subject
        Name of the scan; with ``index_sets: scan`` its index sets are looked up under this name.
    reference
        ``air`` or ``cohort``; or encodings ``(N, C)`` at the network's voxels, such as :func:`mean_encoding` gives.

    since
        Row whose median is taken off first: what is attributed is then the change between two visits (a decline), of
        which the level that all visits share is no part.
    output
        Of classes, which is explained: by default the second of two, of several the one that is most probable.

    Raises
    ------
    ValueError
        If the network is in training mode, its grid is not the scan's, the scan holds NaN, the reference is unknown,
        of another shape, or not in the checkpoint, or there is no such visit or class.
    """
    if isinstance(reference, str) and reference not in REFERENCES:
        raise ValueError(f"config key `reference`: {reference!r} is none of {', '.join(REFERENCES)}")
    if network.training:
        raise ValueError("the network is in training mode, where noise moves predictions: call eval() first")
    for row in (visit, since):
        if row is not None:
            check_visit(subject, tabular, row)
    with torch.enable_grad():
        codes, values, trains = _trains(network, scan, subject)
        device = values[0].device
        rows = None if tabular is None else tabular.to(device)
        index = torch.zeros(1 if rows is None else len(rows), dtype=torch.int64, device=device)
        quantiles = network.predict(network.basis(trains), rows, index)
        column, scores = _explained(network, quantiles, visit, output)
        explained = scores[visit] if since is None else scores[visit] - scores[since]
        gradients = torch.autograd.grad(explained, values, materialize_grads=True)  # 0 without a basis
    above = [v.detach()[0] for v in values]
    if not (isinstance(reference, str) and reference == "air"):
        above = [v - r.to(v) for v, r in zip(above, _reference(network, reference, codes, above), strict=True)]
    moved = torch.cat([(g[0] * v).sum(-1) for g, v in zip(gradients, above, strict=True)]).cpu()
    finite = bool(torch.isfinite(moved).all())
    once, place = torch.unique(torch.cat(codes), return_inverse=True)
    moved = moved if finite else torch.zeros_like(moved)
    summed = torch.zeros(len(once), dtype=torch.float64).index_add(0, place, moved)
    inside = network.grid.inside(once)
    return Explained(quantiles.detach().cpu(), network.grid.decode(once)[inside], summed[inside], finite, column)


def check_visit(subject: str, tabular: Tensor | None, visit: int) -> None:
    """Check that a scan with tabular values ``(V, F)``, or None for one visit, has this one; a ValueError names it."""
    count = 1 if tabular is None else len(tabular)
    if not -count <= visit < count:
        raise ValueError(
            f"scan {subject} has {count} visits, counted from 0, and no visit {visit}: set config key `explain_visit` "
            "to one that all scans have (-1 is the last)"
        )


def _explained(network: CPICNet, outputs: Tensor, visit: int, chosen: int | None) -> tuple[int, Tensor]:
    """The column explained, and what is explained of every row ``(V,)``.

    Softmax knows no common level of the logits, so of classes it is not a logit: of two the log odds, of several the
    log probability.
    """
    count = outputs.shape[1]
    if not isinstance(network.head, LogitHead) or count == 1:
        return count // 2, outputs[:, count // 2]
    if chosen is not None and not 0 <= chosen < count:
        raise ValueError(f"there are {count} classes, counted from 0, and no class {chosen}")
    column = chosen if chosen is not None else 1 if count == 2 else int(outputs[visit].argmax())
    if count == 2:
        return column, outputs[:, column] - outputs[:, 1 - column]
    return column, outputs.log_softmax(1)[:, column]


def _trains(network: CPICNet, scan: VirtualScan, subject: str) -> tuple[list[Tensor], list[Tensor], list[TensorTrain]]:
    """Codes ``(M,)`` asked for, their encodings float64 ``(1, M, C)`` as leaves of the graph, and the trains."""
    source = network.source([scan])
    sets = network.indices
    codes: list[Tensor] = []
    values: list[Tensor] = []

    def evaluate(asked: Tensor) -> Tensor:
        with torch.no_grad():
            encoded = network.encode(source.patches(network.grid.decode(asked))).double()
        if not bool(torch.isfinite(encoded).all()):
            raise ValueError(f"the encoding of scan {subject} holds NaN or infinite values: so does its file")
        codes.append(asked[0].cpu())
        values.append(encoded.requires_grad_())
        return values[-1]

    if not isinstance(sets, ScanIndexSets):
        return codes, values, sets.decompose(evaluate(sets.codes()[None]))
    seeds = network.scan_seeds(network.source([scan]), sets, [subject])
    trains, _ = sets.sweep(evaluate, seeds, dtype=network.algebra)
    return codes, values, trains


def shared_reference(network: CPICNet, reference: str) -> str | Tensor:
    """A reference for :func:`explain` of many scans: encodings ``(N, C)`` made once, where all scans share voxels."""
    if reference != "cohort" or isinstance(network.indices, ScanIndexSets):
        return reference
    return torch.cat(basis_encoding(network, _by_draw(network)))


def _by_draw(network: CPICNet) -> list[Tensor]:
    """Codes int64 ``(M,)`` of the voxels that all scans share, one tensor a draw."""
    assert not isinstance(network.indices, ScanIndexSets)
    codes = network.indices.codes()[None, :, None]
    split = getattr(network.indices, "split", None)  # draws of unlike numbers of voxels, one after the other
    return [part[0, :, 0] for part in (split(codes) if split else codes.chunk(network.indices.draws, 1))]


def _reference(
    network: CPICNet, reference: str | Tensor, codes: list[Tensor], values: list[Tensor]
) -> list[Tensor] | tuple[Tensor, ...]:
    """The reference ``(M, C)`` of each evaluation's values ``(M, C)``."""
    sizes = [len(v) for v in values]
    if isinstance(reference, Tensor):
        if isinstance(network.indices, ScanIndexSets) or len(reference) != sum(sizes):
            raise ValueError(
                f"reference encodings of shape {tuple(reference.shape)} for {sum(sizes)} voxels of this scan: they "
                "must be those of the network's present voxels, which scans share (not with `index_sets: scan`)"
            )
        return reference.split(sizes)
    if isinstance(network.indices, ScanIndexSets):
        return basis_encoding(network, [torch.cat(codes)])[0].split(sizes)
    return [torch.cat(basis_encoding(network, _by_draw(network)))]

"""What a prediction looked at, and which of it moved the prediction: gradient times value at the picked voxels.

The network sees a scan only through the encodings at its picked voxels, so nothing else can have moved a prediction.
For each of them the derivative of the median with respect to its encoding, times that encoding, is summed over
channels and draws of index sets. The derivative goes through the cross-interpolation, the inner products with the basis
and the head. An encoding is measured from that of empty background, so the reference is air: an attribution is the
first-order change of the median if the voxel's surroundings, and no others, were replaced by air, with its sign turned.
The median is not linear in the encodings, so attributions do not add up to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cpic_monai.cross.bank import ScanIndexSets
from cpic_monai.networks import CPICNet
from cpic_monai.tensor_train import TensorTrain

if TYPE_CHECKING:
    from cpic_monai.transforms import VirtualScan

#: Label map value of each class; 0 is a voxel that was not looked at.
CLASSES = {"picked": 1, "weak": 2, "raises": 3, "lowers": 4}

#: A label map holds a byte for each of the scan's own voxels: no larger ones are made.
MOST_VOXELS = 2**31
CHUNK = 2**21


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
        Attributions float64 ``(N,)`` to the median of one visit, normalised like the quantiles.
    finite
        False where the derivative is not finite (TT-SVD of a scan with equal singular values); attributions are then 0.
    """

    quantiles: Tensor
    voxels: Tensor
    attribution: Tensor
    finite: bool = True


def explain(
    network: CPICNet, scan: VirtualScan, tabular: Tensor | None = None, *, visit: int = -1, subject: str = "scan"
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

    Raises
    ------
    ValueError
        If the network is in training mode, its grid is not the scan's, or the scan holds NaN.
    """
    if network.training:
        raise ValueError("the network is in training mode, where noise moves predictions: call eval() first")
    with torch.enable_grad():
        codes, values, trains = _trains(network, scan, subject)
        device = values[0].device
        rows = None if tabular is None else tabular.to(device)
        index = torch.zeros(1 if rows is None else len(rows), dtype=torch.int64, device=device)
        quantiles = network.predict(network.basis(trains), rows, index)
        median = quantiles[visit, quantiles.shape[1] // 2]
        gradients = torch.autograd.grad(median, values)
    moved = torch.cat([(g * v).sum(-1)[0] for g, v in zip(gradients, values, strict=True)]).detach().cpu()
    finite = bool(torch.isfinite(moved).all())
    once, place = torch.unique(torch.cat(codes), return_inverse=True)
    moved = moved if finite else torch.zeros_like(moved)
    summed = torch.zeros(len(once), dtype=torch.float64).index_add(0, place, moved)
    inside = network.grid.inside(once)
    return Explained(quantiles.detach().cpu(), network.grid.decode(once)[inside], summed[inside], finite)


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
    known = subject in sets.seeds
    with torch.no_grad():
        network.decompose([scan], [subject])  # draws the seeds of a scan not seen before, as predicting it does
    try:
        trains, _ = sets.sweep(evaluate, sets.seeds[subject][None])
    finally:
        if not known:
            sets.forget([subject])
    return codes, values, trains


def attribution_classes(attribution: Tensor, weak: float = 0.5, strong: float = 0.9) -> Tensor:
    """Classes int64 ``(N,)`` of attributions ``(N,)`` by the quantiles of their sizes; values as in ``CLASSES``.

    Below the quantile ``weak`` of the sizes (by default the smaller half) a voxel is only ``picked``, from there on
    ``weak``; from the quantile ``strong`` on (by default the largest tenth) it ``raises`` or ``lowers`` the median by
    its sign. Voxels of equal size are ``picked``.

    Raises
    ------
    ValueError
        Unless ``0 < weak < strong < 1``.
    """
    if not 0 < weak < strong < 1:
        raise ValueError(f"quantiles of attribution must rise within 0 and 1, found weak {weak} and strong {strong}")
    size = attribution.abs().numpy()
    if not len(size):
        return torch.zeros(0, dtype=torch.int64)
    low, high = np.quantile(size, [weak, strong])
    classes = np.full(len(size), CLASSES["picked"])
    classes[size > low] = CLASSES["weak"]
    most = (size >= high) & (size > low)
    classes[most] = np.where(attribution.numpy()[most] > 0, CLASSES["raises"], CLASSES["lowers"])
    return torch.from_numpy(classes)


def label_map(scan: VirtualScan, explained: Explained) -> np.ndarray:
    """Classes of the picked voxels on the scan's own grid, uint8 of the shape of its file; its affine is the file's.

    A picked voxel of the view is drawn as the file's voxels whose centres lie in it; as the one nearest to its centre
    where there is none, as the view is finer than the file. Where several meet in one, the larger attribution shows.

    Raises
    ------
    ValueError
        If the file has more than ``MOST_VOXELS`` voxels.
    """
    shape = scan.volumes[0].shape
    if np.prod(shape, dtype=float) > MOST_VOXELS:
        raise ValueError(f"{scan.subject}: a label map of {shape} voxels would take more than {MOST_VOXELS} bytes")
    labels = np.zeros(shape, np.uint8)
    order = explained.attribution.abs().argsort(stable=True)  # what is drawn later stays
    places, row = source_voxels(scan, explained.voxels[order].numpy())
    classes = attribution_classes(explained.attribution)[order].numpy().astype(np.uint8)
    labels[tuple(places.T)] = classes[row]
    return labels


def source_voxels(scan: VirtualScan, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The file's voxels that voxels of the view cover.

    Parameters
    ----------
    scan
        The view.
    voxels
        int64 ``(N, 3)``.

    Returns
    -------
    places, row
        int64 ``(M, 3)`` and ``(M,)``: voxels of the file, and which of ``voxels`` each belongs to, rising. Voxels that
        lie outside the file are left out.
    """
    shape = np.array(scan.volumes[0].shape)
    linear, shift = scan.to_source[:3, :3], scan.to_source[:3, 3]
    back = np.linalg.inv(scan.to_source)
    reach = np.abs(linear).sum(axis=1) / 2  # of the box around a voxel of the view, in the file's voxels
    counts = np.floor(2 * reach + 1e-6).astype(np.int64) + 1
    offsets = np.stack(np.meshgrid(*(np.arange(n) for n in counts), indexing="ij"), axis=-1).reshape(-1, 3)
    places, rows = [], []
    for start in range(0, len(voxels), max(1, CHUNK // len(offsets))):
        part = voxels[start : start + max(1, CHUNK // len(offsets))]
        centres = part @ linear.T + shift
        tried = np.ceil(centres - reach - 1e-6).astype(np.int64)[:, None] + offsets  # (n, K, 3)
        # Half open, so that a voxel of the file between two of the view belongs to one of them.
        seen = np.floor(tried @ back[:3, :3].T + back[:3, 3] + 0.5 + 1e-6) == part[:, None]
        covered = seen.all(-1)
        nearest = np.floor(centres + 0.5 + 1e-6).astype(np.int64)
        tried, covered = np.append(tried, nearest[:, None], 1), np.append(covered, ~covered.any(1, keepdims=True), 1)
        covered &= ((tried >= 0) & (tried < shape)).all(-1)
        row, which = np.nonzero(covered)
        places.append(tried[row, which])
        rows.append(row + start)
    return np.concatenate([np.zeros((0, 3), np.int64), *places]), np.concatenate([np.zeros(0, np.int64), *rows])

"""What encodings are measured from: those of air, or those that the cohort has in the same place.

From air, what everybody has (a chest wall, a spine) counts as much as what sets a patient apart. From the cohort's mean
an attribution says why this prediction differs from that of the average scan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cpic_monai.cross.bank import ScanIndexSets
from cpic_monai.cross.tangent import TangentIndexSets
from cpic_monai.networks import CPICNet
from cpic_monai.transforms import VirtualScan

__all__ = ["REFERENCES", "basis_encoding", "mean_encoding"]

#: ``air``: zero, an empty patch's encoding. ``cohort``: the mean of the basis scans, from the checkpoint alone.
REFERENCES = ("air", "cohort")


@torch.no_grad()
def basis_encoding(network: CPICNet, codes: Sequence[Tensor]) -> list[Tensor]:
    """Mean encoding of the basis scans, as their tensor trains interpolate it.

    The trains are part of the checkpoint, so that no training scan is needed; what interpolation loses of their
    encodings is missing.

    Parameters
    ----------
    network
        With a fitted basis.
    codes
        Voxel codes int64 ``(M,)``, one tensor a draw of index sets.

    Returns
    -------
    list of Tensor
        float64 ``(M, C)``, one a draw.

    Raises
    ------
    ValueError
        If the network keeps no trains (``projection: trl``, or a basis not fitted yet).
    """
    trains = list(getattr(network.basis, "trains", ()))
    if len(trains) != len(codes):
        raise ValueError(
            f"the checkpoint holds the basis scans' trains of {len(trains)} draws for {len(codes)} draws of voxels: "
            "reference 'cohort' needs a fitted canonical basis (`projection: basis`); use 'air'"
        )
    means = []
    for draw, (train, asked) in enumerate(zip(trains, codes, strict=True)):
        if train.mode_sizes == network.grid.mode_sizes:
            digits = network.grid.digits(asked).to(train.cores[0].device)
            mean = torch.stack([train[scan].at(digits)[0] for scan in range(train.batch)]).mean(0)
        else:
            mean = train.full().mean(0)  # one mode, the voxels in their order: no scan has an interpolation of its own
            if isinstance(network.indices, TangentIndexSets):
                mean = network.indices.unweighted(draw, mean)
        means.append(mean.double())
    return means


@torch.no_grad()
def mean_encoding(network: CPICNet, scans: Iterable[VirtualScan]) -> Tensor:
    """Mean encoding of scans at the network's voxels, float64 ``(N, C)``: exact, but it reads every scan.

    Raises
    ------
    ValueError
        With ``index_sets: scan``, where every scan has voxels of its own, or without scans.
    """
    if isinstance(network.indices, ScanIndexSets):
        raise ValueError("with `index_sets: scan` scans share no voxels to take a mean at; use reference 'cohort'")
    total, count = torch.zeros((), dtype=torch.float64), 0
    for scan in scans:
        total = total + network.encode(network.source([scan]).patches(network.voxels())).double()[0]
        count += 1
    if not count:
        raise ValueError("no scans to take the mean encoding of")
    return total / count

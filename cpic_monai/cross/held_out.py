"""How far encodings are from low rank: trains of one draw of index sets, judged at the voxels of the others.

A train is interpolated from the voxels of its own draw. Those of another draw are in the same batch, encoded anyway and
unseen by it: the error there costs no read and no evaluation of the encoder, and its gradient makes the encoding one
that the rank can hold (not in the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from cpic_monai.grid import IndexGrid
from cpic_monai.tensor_train import TensorTrain


def held_out_error(
    trains: Sequence[TensorTrain], values: Sequence[Tensor], codes: Sequence[Tensor], grid: IndexGrid
) -> Tensor:
    """Squared error at held-out voxels relative to the squared encoding there, ``(B,)``, differentiable.

    Over all ordered pairs of draws, squared errors of one draw's train at the voxels of the other are summed, and
    divided by the sum of squared encodings at the same voxels. Voxels that both draws look at are left out. The
    quotient does not change with the scale of the encoding, so an encoding gains nothing by being small: 0 is an
    encoding of low rank, 1 one that the trains know nothing of. A scan that is all background has an error of 0.

    Parameters
    ----------
    trains
        One a draw, ``B`` scans each, on the modes of ``grid``.
    values
        Encodings ``(B, N_d, C)`` of each draw's voxels, of which its train was interpolated.
    codes
        Those voxels, int64 ``(N_d,)`` a draw (:meth:`cpic_monai.cross.bank.CohortIndexSets.codes`).
    grid
        Of the codes.

    Raises
    ------
    ValueError
        If there are fewer than two draws, or all draws look at the same voxels.
    """
    if len(trains) < 2:
        raise ValueError(f"held-out voxels are those of another draw: two draws needed, found {len(trains)}")
    places = [code.cpu() for code in codes]
    digits = [grid.digits(code) for code in places]
    wrong, size, count = [], [], 0
    for a, b in permutations(range(len(trains)), 2):
        fresh = (~torch.isin(places[b], places[a])).nonzero()[:, 0]
        count += len(fresh)
        truth = values[b].index_select(1, fresh.to(values[b].device))
        guess = trains[a].at(digits[b][fresh].to(truth.device))
        wrong.append((guess - truth).square().flatten(1).sum(1))
        size.append(truth.square().flatten(1).sum(1))
    if not count:
        raise ValueError(
            f"all {len(trains)} draws of index sets look at the same {len(places[0])} voxels, so none is held out: "
            "the grid is too small for this `rank`; set `low_rank_weight` to 0"
        )
    return torch.stack(wrong).sum(0) / torch.stack(size).sum(0).clamp_min(torch.finfo(torch.float32).tiny)

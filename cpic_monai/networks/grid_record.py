"""The index grid in the checkpoint: voxels are kept as codes, and what a code means, the grid says.

Grids that are padded alike (60 x 64 x 64 and 64 x 64 x 64 voxels, or cells of 2 and of 3 voxels) have tables of equal
sizes, so that only this record tells them apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cpic_monai.grid import UNFOLDINGS, IndexGrid


class GridRecord(nn.Module):
    """Shape, step and unfolding of a grid as a buffer, int64 ``(D + 2,)``.

    Loading the record of another grid is an error of ``load_state_dict`` that names the config keys. Checkpoints of
    before there was a record load as they did.
    """

    facts: Tensor

    def __init__(self, grid: IndexGrid) -> None:
        super().__init__()
        facts = [*grid.shape, grid.step, UNFOLDINGS.index(grid.unfolding)]
        self.register_buffer("facts", torch.tensor(facts, dtype=torch.int64))

    def differences(self, other: Tensor | None) -> dict[str, tuple[Any, Any]]:
        """Config key to (the other's, this grid's) value where another record differs; nothing if there is none."""
        if other is None:
            return {}
        there, here = _named(other), _named(self.facts)
        return {key: (there[key], here[key]) for key in here if there[key] != here[key]}

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        for key, (there, here) in self.differences(state_dict.get(f"{prefix}facts")).items():
            error_msgs.append(
                f"config key `{key}` is {here}, the checkpoint's was {there}: its voxels would be others. "
                f"Set `{key}` to {there}, or train anew"
            )


def _named(facts: Tensor) -> dict[str, Any]:
    *shape, step, unfolding = facts.tolist()
    return {"spatial_shape": shape, "grid_step": step, "unfolding": UNFOLDINGS[unfolding]}

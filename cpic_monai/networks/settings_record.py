"""Settings kept in the checkpoint, because its weights and tables fit others as well and would mean something else.

Voxels are kept as codes, and what a code means, the grid says: grids that are padded alike (60 x 64 x 64 and
64 x 64 x 64 voxels, or cells of 2 and of 3 voxels) have tables of equal sizes. An encoder that pools has the weights of
one that does not, and one that sees two scales those of one that sees two channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cpic_monai.grid import UNFOLDINGS, IndexGrid


class SettingsRecord(nn.Module):
    """Settings as a buffer, int64.

    Loading the record of other settings is an error of ``load_state_dict`` that names the config keys. Checkpoints of
    before there was a record load as they did.
    """

    facts: Tensor
    consequence: str

    def __init__(self, facts: list[int]) -> None:
        super().__init__()
        self.register_buffer("facts", torch.tensor(facts, dtype=torch.int64))

    def named(self, facts: list[int]) -> dict[str, Any]:
        """Config key to value."""
        raise NotImplementedError

    def differences(self, other: Tensor | None) -> dict[str, tuple[Any, Any]]:
        """Config key to (the other's, this one's) value where another record differs; nothing if there is none."""
        if other is None:
            return {}
        there, here = self.named(other.tolist()), self.named(self.facts.tolist())
        return {key: (there[key], here[key]) for key in here if key in there and there[key] != here[key]}

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        for key, (there, here) in self.differences(state_dict.get(f"{prefix}facts")).items():
            error_msgs.append(
                f"config key `{key}` is {here}, the checkpoint's was {there}: {self.consequence}. "
                f"Set `{key}` to {there}, or train anew"
            )


class GridRecord(SettingsRecord):
    """Shape, step and unfolding of a grid, ``(D + 2,)``."""

    consequence = "its voxels would be others"

    def __init__(self, grid: IndexGrid) -> None:
        super().__init__([*grid.shape, grid.step, UNFOLDINGS.index(grid.unfolding)])

    def named(self, facts: list[int]) -> dict[str, Any]:
        """Config key to value."""
        *shape, step, unfolding = facts
        return {"spatial_shape": shape, "grid_step": step, "unfolding": UNFOLDINGS[unfolding]}


class EncoderRecord(SettingsRecord):
    """How many positions along an axis an encoder averages over, and the scales of its patches, ``(1 + number,)``.

    Records of before scales were kept hold ``pooling`` alone, and are compared in that.
    """

    consequence = "its patches would be others"

    def __init__(self, pooling: int, scales: Sequence[int]) -> None:
        super().__init__([pooling, *scales])

    def named(self, facts: list[int]) -> dict[str, Any]:
        """Config key to value."""
        pooling, *scales = facts
        return {"pooling": pooling, **({"scales": scales} if scales else {})}

"""What stays on the CPU when a network moves to another device, and is of a checkpoint's number of draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class HostModule(nn.Module):
    """A module whose buffers stay on the CPU: loader workers read them, and may not touch a GPU.

    Attributes
    ----------
    by_draw
        Names of the buffers whose first axis is the draw: a checkpoint may hold more or fewer draws.
    """

    by_draw: tuple[str, ...] = ()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> HostModule:
        """Change nothing, whatever device or type is asked for."""
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Take whatever number of draws the checkpoint holds."""
        for name in self.by_draw:
            value = state_dict.get(f"{prefix}{name}")
            if value is not None and value.shape[1:] == getattr(self, name).shape[1:]:
                setattr(self, name, torch.zeros_like(value, device="cpu"))
        super()._load_from_state_dict(state_dict, prefix, *args)

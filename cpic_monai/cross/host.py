"""What stays on the CPU when a network moves to another device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class HostModule(nn.Module):
    """A module whose buffers stay on the CPU: loader workers read them, and may not touch a GPU."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> HostModule:
        """Change nothing, whatever device or type is asked for."""
        return self

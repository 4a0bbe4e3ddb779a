"""The prediction head: scan features and tabular values to quantiles (paper Appendix A.4)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def mlp(widths: Sequence[int], *, batch_norm: bool = False) -> list[nn.Module]:
    """Linear layers of the given widths, each followed by (batch norm and) ReLU."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if batch_norm else []), nn.ReLU()]
    return layers


class QuantileHead(nn.Module):
    """Tabular MLP and joint MLP to ``Q`` ordered quantiles.

    Parameters
    ----------
    rank
        Scan features.
    tabular_features
        Tabular values a row; 0 leaves the tabular branch out (BraTS).
    tabular_hidden, joint_hidden
        Layer widths: 1-500-100 and (r + 100)-100-20-Q at the paper's OSIC settings.
    quantiles
        Number of quantiles ``Q``.
    noise
        Standard deviation of Gaussian noise on the tabular values in training.
    batch_norm
        In the joint MLP (BraTS).

    Attributes
    ----------
    widths
        Buffer, float32 ``(Q,)``: factors of the distances between neighbouring quantiles, the middle one's unused. 1
        unless calibrated (:mod:`cpic_monai.calibration`); in training mode they are left out, since the loss is of the
        quantiles as the head gives them. A checkpoint without them is one that is not calibrated.
    """

    widths: Tensor

    def __init__(
        self,
        rank: int,
        tabular_features: int = 1,
        tabular_hidden: Sequence[int] = (500, 100),
        joint_hidden: Sequence[int] = (100, 20),
        quantiles: int = 3,
        noise: float = 0.2,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.rank, self.tabular_features, self.quantiles, self.noise = rank, tabular_features, quantiles, noise
        self.tabular = nn.Sequential(*mlp((tabular_features, *tabular_hidden))) if tabular_features else None
        width = rank + (tabular_hidden[-1] if tabular_features else 0)
        self.joint = nn.Sequential(
            *mlp((width, *joint_hidden), batch_norm=batch_norm), nn.Linear(joint_hidden[-1], quantiles)
        )
        self.register_buffer("widths", torch.ones(quantiles))

    def reset_parameters(self) -> None:
        """Undo the calibration, which belongs to the weights it was made for; layers reset themselves."""
        self.widths.fill_(1.0)

    def forward(self, features: Tensor, tabular: Tensor | None = None) -> Tensor:
        """Features float ``(R, rank)`` and tabular ``(R, F)`` to quantiles ``(R, Q)``, non-decreasing along ``Q``.

        Without ``tabular`` the columns are zero, the mean of standardised values.
        """
        if self.tabular is not None:
            if tabular is None:
                tabular = features.new_zeros((features.shape[0], self.tabular_features))
            if tabular.shape != (features.shape[0], self.tabular_features):
                raise ValueError(
                    f"tabular values have shape {tuple(tabular.shape)}; this head wants "
                    f"({features.shape[0]}, {self.tabular_features}): check `tabular_columns` against the checkpoint's"
                )
            tabular = tabular.to(features.dtype)
            if self.training and self.noise > 0:
                tabular = tabular + self.noise * torch.randn_like(tabular)
            features = torch.cat([features, self.tabular(tabular)], dim=1)
        return self.outputs(self.joint(features))

    def outputs(self, raw: Tensor) -> Tensor:
        """The last layer's ``(R, Q)`` as quantiles."""
        return ordered(raw, None if self.training else self.widths)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Checkpoints from before there was a calibration load as not calibrated."""
        if f"{prefix}joint.0.weight" in state_dict:  # an empty state is still reported as lacking everything
            state_dict.setdefault(f"{prefix}widths", torch.ones_like(self.widths))
        super()._load_from_state_dict(state_dict, prefix, *args)


class LogitHead(QuantileHead):
    """The same layers, whose outputs are as the last one gives them, in no order: logits of classes, a log hazard.

    Parameters are those of :class:`QuantileHead`; ``quantiles`` is the number of outputs.
    """

    def outputs(self, raw: Tensor) -> Tensor:
        """The last layer's ``(R, Q)``."""
        return raw


def ordered(raw: Tensor, widths: Tensor | None = None) -> Tensor:
    """Quantiles that cannot cross: the middle output, and softplus steps away from it on both sides.

    Steps are multiplied by ``widths`` ``(Q,)``, at least 0.
    """
    middle = raw.shape[1] // 2
    centre = raw[:, middle : middle + 1]
    steps = nn.functional.softplus(raw)
    if widths is not None:
        steps = steps * widths
    below = centre - steps[:, :middle].flip(1).cumsum(1).flip(1)
    above = centre + steps[:, middle + 1 :].cumsum(1)
    return torch.cat([below, centre, above], dim=1)

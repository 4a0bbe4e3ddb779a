"""From encodings to scan features where these are linear in the encoding: one matrix."""

# No `from __future__ import annotations` here: TorchScript reads the types of attributes, not their names.
import torch
from torch import Tensor, nn

from cpic_monai.cross.random_voxels import PickedValues, RandomVoxels
from cpic_monai.networks import CanonicalBasis


class LinearProjection(nn.Module):
    """What interpolation, inner products with the basis and projection come to when all scans share the interpolation.

    Then no quotient of the scan's own values is in it (:mod:`cpic_monai.cross.tangent`, or no interpolation at all),
    and of the basis scans only their sum along each direction is kept: a few numbers a voxel.

    Parameters
    ----------
    sets
        ``tangent``, ``picked_values`` or ``random_voxels``.
    basis
        Fitted to their trains.
    channels
        Of the encoding.
    """

    directions: Tensor
    offset: Tensor

    def __init__(self, sets: PickedValues | RandomVoxels, basis: CanonicalBasis, channels: int) -> None:
        super().__init__()
        place = basis.centre.device
        values = torch.zeros((1, len(sets.codes()), channels), dtype=torch.float64, device=place, requires_grad=True)
        with torch.enable_grad():
            features = basis(sets.decompose(values))[0]
            slopes = [torch.autograd.grad(f, values, retain_graph=True)[0] for f in features]
        self.register_buffer("directions", torch.stack([slope.flatten() for slope in slopes], dim=1))
        self.register_buffer("offset", features.detach().clone())

    def forward(self, values: Tensor) -> Tensor:
        """Encodings float64 ``(S, N, C)`` to features float64 ``(S, rank)``."""
        return values.flatten(1) @ self.directions + self.offset

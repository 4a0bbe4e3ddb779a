"""What the cross-approximations of ``bench_cross.py`` are given: tensors that are known in every voxel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from monai.transforms import Orientationd, Resized
from torch import Tensor, nn

from cpic_monai.grid import IndexGrid
from cpic_monai.networks import PatchEncoder
from cpic_monai.tensor_train import tt_svd
from cpic_monai.transforms import HUWindow, LazyCompose, LoadVolumed, PercentileScaled, VirtualScan, VirtualScand

CT_AIR = -1000.0


@dataclass
class Problem:
    """Tensors ``(B, *shape, C)`` of one grid, in every voxel.

    Attributes
    ----------
    name
        Of the problem.
    grid
        Without padding: every side is a power of two.
    dense
        Float64 ``(B, *shape, C)``.
    foreground
        Bool ``(B, *shape)``: voxels that seeds are drawn from.
    noiseless
        Whether it is a smooth function.
    """

    name: str
    grid: IndexGrid
    dense: Tensor
    foreground: Tensor
    noiseless: bool = False
    _errors: dict[int, Tensor] = field(default_factory=dict)

    @cached_property
    def flat(self) -> Tensor:
        """Values by voxel code, ``(B, N, C)``."""
        return self.dense.flatten(1, -2)

    @property
    def batch(self) -> int:
        """Number of tensors."""
        return self.dense.shape[0]

    @property
    def channels(self) -> int:
        """Values a voxel."""
        return self.dense.shape[-1]

    def evaluator(self, seen: list[Tensor]) -> Callable[[Tensor], Tensor]:
        """``evaluate(codes)`` of the package's sweeps; codes asked for are appended to ``seen``."""

        def evaluate(codes: Tensor) -> Tensor:
            seen.append(codes)
            if codes.shape[0] == 1:
                return self.flat[:, codes[0]]
            return self.flat.gather(1, codes[:, :, None].expand(-1, -1, self.channels))

        return evaluate

    def seeds(self, count: int, generator: torch.Generator) -> Tensor:
        """Codes int64 ``(B, count)`` of random foreground voxels."""
        drawn = []
        for mask in self.foreground.flatten(1):
            voxels = mask.nonzero()[:, 0]
            drawn.append(voxels[torch.randint(len(voxels), (count,), generator=generator)])
        return torch.stack(drawn)

    def svd_error(self, rank: int) -> Tensor:
        """Relative Frobenius error ``(B,)`` of TT-SVD of this rank, channels the free last bond."""
        if rank not in self._errors:
            self._errors[rank] = self.error(tt_svd(self.grid.unfold(self.dense), rank).full())
        return self._errors[rank]

    def error(self, unfolded: Tensor) -> Tensor:
        """Relative Frobenius error ``(B,)`` of an approximation ``(B, n_1, ..., n_K, C)``."""
        wrong = (self.grid.fold(unfolded) - self.dense).flatten(1).norm(dim=1)
        return wrong / self.dense.flatten(1).norm(dim=1)


def analytic(side: int = 32) -> list[Problem]:
    """Functions on ``side**3`` voxels of [-1, 1]^3 by the QTT's interleaved modes."""
    grid = IndexGrid((side,) * 3)
    axis = torch.linspace(-1, 1, side, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    step = torch.arange(1, side + 1, dtype=torch.float64)
    i, j, k = torch.meshgrid(step, step, step, indexing="ij")
    generator = torch.Generator().manual_seed(0)
    centres = 1.6 * torch.rand((8, 3), generator=generator, dtype=torch.float64) - 0.8
    widths = 0.2 + 0.3 * torch.rand(8, generator=generator, dtype=torch.float64)
    bumps = torch.exp(-(x[..., None, :] - centres).square().sum(-1) / widths.square())  # (n, n, n, 8)
    waves = 3 * torch.randn((3, 4), generator=generator, dtype=torch.float64)
    made = {
        "1/(1+|x|)": 1 / (1 + x.norm(dim=-1)),
        "Hilbert 1/(i+j+k)": 1 / (i + j + k),
        "eight Gaussians": bumps.sum(-1),
        "eight Gaussians, a channel each": bumps,
        "sines, 4 channels": torch.sin(x @ waves + x.square().sum(-1, keepdim=True)),
    }
    everywhere = torch.ones((1, side, side, side), dtype=torch.bool)
    return [
        Problem(name, grid, (v if v.ndim == 4 else v[..., None])[None].contiguous(), everywhere, noiseless=True)
        for name, v in made.items()
    ]


def encoder(checkpoint: Path | None, seed: int) -> PatchEncoder:
    """The paper's encoder for one image channel, with random weights or those of a network's checkpoint.

    Raises
    ------
    ValueError
        If the checkpoint holds no encoder of one image channel.
    """
    torch.manual_seed(seed)
    if checkpoint is None:
        return PatchEncoder().eval()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state = state.get("model", state)
    weights = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    layers = [w for name, w in weights.items() if name.endswith(".weight")]
    if not layers or layers[0].shape[1] != 1:
        raise ValueError(f"{checkpoint} holds no encoder of one image channel: train with `scales` [1] and one image")
    widths = [w.shape[0] for w in layers]
    out = PatchEncoder(1, widths[-1], widths[:-1], layers[0].shape[-1])
    out.load_state_dict(weights)
    return out.eval()


@torch.no_grad()
def encode_densely(network: PatchEncoder, image: Tensor) -> Tensor:
    """The encoding ``(*shape, C)`` of an image ``(1, *shape)`` in all voxels, minus the empty patch's.

    Convolutions over the padded volume are what the network does patch by patch (``CPICNet.encode``).
    """
    reach = network.patch_size // 2
    padded = nn.functional.pad(image[None], [reach] * 6)
    blank = image.new_zeros((1, 1, *(network.patch_size,) * 3))
    return (network.layers(padded) - network.layers(blank))[0].movedim(0, -1).double()


def scan(path: Path, shape: tuple[int, int, int], ct: bool) -> VirtualScan:
    """A scan as the shipped configurations see it."""
    chain = LazyCompose(
        [
            LoadVolumed(keys="image"),
            Orientationd(keys="image", axcodes="SPL", labels=None),
            Resized(keys="image", spatial_size=shape),
            VirtualScand(
                keys="image",
                intensity=[HUWindow()] if ct else [PercentileScaled(lower=1.0, upper=99.5)],
                padding_value=CT_AIR if ct else 0.0,
            ),
        ]
    )
    return chain({"image": str(path)})["image"]


def encodings(
    name: str, paths: list[Path], shape: tuple[int, int, int], ct: bool, network: PatchEncoder, unfolding: str
) -> Problem:
    """Encodings of scans in every voxel; seeds come from voxels above 0.05, as in the configurations."""
    images = [scan(path, shape, ct).box((0, 0, 0), shape) for path in paths]
    dense = torch.stack([encode_densely(network, image) for image in images])
    return Problem(name, IndexGrid(shape, unfolding), dense, torch.stack([image[0] > 0.05 for image in images]))


def intensities(name: str, paths: list[Path], shape: tuple[int, int, int], ct: bool, unfolding: str) -> Problem:
    """The scans themselves: a scalar encoding, as without an encoder (the paper's "TT + MLP")."""
    images = [scan(path, shape, ct).box((0, 0, 0), shape) for path in paths]
    dense = torch.stack([image.movedim(0, -1).double() for image in images])
    return Problem(name, IndexGrid(shape, unfolding), dense, torch.stack([image[0] > 0.05 for image in images]))

"""The patch encoder against a dense convolution, and quantiles that keep their order."""

from __future__ import annotations

import pytest
import torch

from cpic_monai.networks import PatchEncoder, QuantileHead, VoxelValues
from cpic_monai.networks.encoder import ChannelNorm
from cpic_monai.networks.patch_source import DenseSource


@pytest.mark.parametrize("channel_norm", [False, True])
def test_patches_give_what_a_dense_convolution_gives(channel_norm: bool) -> None:
    encoder = PatchEncoder(2, channels=3, features=(4, 5), channel_norm=channel_norm)
    assert encoder.patch_size == 7
    image = torch.randn(2, 2, 5, 6, 4)
    reach = encoder.patch_size // 2
    dense = encoder.layers(torch.nn.functional.pad(image, [reach] * 6))  # (B, 3, 5, 6, 4)
    voxels = torch.cartesian_prod(torch.arange(5), torch.arange(6), torch.arange(4))
    patches = DenseSource(image, encoder.patch_size).patches(voxels)
    values = encoder(patches.flatten(0, 1)).reshape(2, 5, 6, 4, 3)
    torch.testing.assert_close(values, dense.permute(0, 2, 3, 4, 1), rtol=1e-4, atol=1e-6)
    assert 0 < values.min().item() < values.max().item() < 1


def test_the_norm_is_over_the_channels_of_each_position() -> None:
    norm = ChannelNorm(6)
    hidden = torch.randn(2, 6, 3, 4, 5) * torch.linspace(0.5, 3, 5) + 4.0
    found = norm(hidden)
    torch.testing.assert_close(found.mean(1), torch.zeros(2, 3, 4, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.square().mean(1), torch.ones(2, 3, 4, 5), rtol=1e-3, atol=1e-3)
    only = hidden.clone()
    only[0, :, 1, 1, 1] = torch.randn(6)
    changed = (norm(only) != found).any(1)
    assert changed.nonzero().tolist() == [[0, 1, 1, 1]]


def test_pooling_averages_the_encodings_around_a_voxel() -> None:
    encoder = PatchEncoder(1, channels=3, features=(4,), pooling=3)
    assert encoder.patch_size == 7
    image = torch.randn(1, 1, 9, 9, 9)
    dense = encoder.layers(image)  # (1, 3, 5, 5, 5), around the voxels 2 to 6 along each axis
    wanted = torch.nn.functional.avg_pool3d(dense, 3, stride=1)  # around the voxels 3 to 5
    voxels = torch.cartesian_prod(*[torch.arange(3, 6)] * 3)
    values = encoder(DenseSource(image, 7).patches(voxels)[0])
    torch.testing.assert_close(values.T.reshape(1, 3, 3, 3, 3), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", [0, 2])
def test_pooling_that_has_no_middle_is_refused(pooling: int) -> None:
    with pytest.raises(ValueError, match=f"`pooling` must be 1, 3, 5, .*found {pooling}"):
        PatchEncoder(pooling=pooling)


def test_dense_source_reads_shared_and_own_voxels_alike() -> None:
    image = torch.arange(2 * 27.0).reshape(2, 1, 3, 3, 3)
    source = DenseSource(image, 3)
    voxels = torch.tensor([[1, 1, 1], [0, 0, 0]])
    shared, own = source.patches(voxels), source.patches(voxels.expand(2, -1, -1))
    assert torch.equal(shared, own)
    assert torch.equal(shared[:, 0, 0], image[:, 0])
    assert torch.equal(shared[0, 1, 0, 1:, 1:, 1:], image[0, 0, :2, :2, :2])
    assert not shared[0, 1, 0, 0].any(), "outside the scan is background"


def test_foreground_seeds_lie_in_the_foreground() -> None:
    image = torch.zeros(2, 2, 4, 4, 4)
    image[0, 1, 2, 3, 1] = 5.0
    seeds = DenseSource(image, 3).foreground(6, torch.Generator().manual_seed(0))
    assert seeds.shape == (2, 6, 3)
    assert seeds[0].unique(dim=0).tolist() == [[2, 3, 1]]
    assert int(seeds[1].min()) >= 0  # empty: anywhere within
    assert int(seeds[1].max()) <= 3


def test_voxel_values_are_the_voxels() -> None:
    patches = torch.randn(4, 3, 1, 1, 1)
    assert torch.equal(VoxelValues(3)(patches), patches[:, :, 0, 0, 0])


@pytest.mark.parametrize("quantiles", [1, 2, 3, 7])
def test_quantiles_never_cross(quantiles: int) -> None:
    head = QuantileHead(4, 2, (8, 6), (8, 5), quantiles)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=3.0)
    out = head(10 * torch.randn(200, 4), 10 * torch.randn(200, 2))
    assert out.shape == (200, quantiles)
    assert bool((out.diff(dim=1) >= 0).all())


def test_missing_tabular_values_are_the_mean() -> None:
    head = QuantileHead(3, 2).eval()
    features = torch.randn(4, 3)
    assert torch.equal(head(features), head(features, torch.zeros(4, 2)))
    with pytest.raises(ValueError, match=r"\(4, 3\).*wants \(4, 2\)"):
        head(features, torch.zeros(4, 3))


def test_noise_falls_on_tabular_values_in_training_alone() -> None:
    head = QuantileHead(3, 1, noise=0.5)
    features, tabular = torch.randn(4, 3), torch.randn(4, 1)
    assert not torch.equal(head(features, tabular), head(features, tabular))
    head.eval()
    assert torch.equal(head(features, tabular), head(features, tabular))
    quiet = QuantileHead(3, 1, noise=0.0)
    assert torch.equal(quiet(features, tabular), quiet(features, tabular))

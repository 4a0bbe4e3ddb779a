"""A tensor train as the bottleneck: what is decoded is what the train says, and less rank says less."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from scans import SHAPE, images, lazy

from cpic_monai.grid import IndexGrid
from cpic_monai.networks.autoencoder import TensorTrainAutoencoder
from cpic_monai.networks.decoder import PatchDecoder
from cpic_monai.tensor_train import TensorTrain, tt_svd
from cpic_monai.tensor_train.entries import entries
from cpic_monai.transforms.targets import SampleTargetsd


def autoencoder(shape: tuple[int, ...] = SHAPE, **settings: Any) -> TensorTrainAutoencoder:
    given: dict[str, Any] = {
        "channels": 4,
        "features": (3,),
        "rank": 4,
        "patch": 3,
        "decoder_features": (6,),
        **settings,
    }
    torch.manual_seed(0)
    return TensorTrainAutoencoder(shape, **given).eval()


@pytest.mark.parametrize("unfolding", ["tt", "grouped", "interleaved", "fused"])
def test_entries_are_those_of_the_dense_tensor(unfolding: str) -> None:
    grid = IndexGrid((3, 8, 5), unfolding)
    dense = torch.randn(2, 3, 8, 5, 2, dtype=torch.float64)
    train = tt_svd(grid.unfold(dense), 1000)
    voxels = torch.stack([torch.randint(n, (2, 50)) for n in grid.shape], dim=-1)
    values = entries(train, grid.digits(grid.encode(voxels)))
    for scan in range(2):
        torch.testing.assert_close(values[scan], dense[scan][tuple(voxels[scan].T)])
    shared = grid.digits(grid.encode(voxels[0]))
    torch.testing.assert_close(entries(train, shared), train.at(shared))
    with pytest.raises(ValueError, match="1 digits a place"):
        entries(train, shared[:, :1])


def test_entries_carry_the_gradient_of_the_plain_product() -> None:
    shapes = [(2, 1, 2, 3), (2, 3, 3, 2), (2, 2, 2, 2)]
    cores = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    digits = torch.tensor([[0, 1, 1], [0, 1, 0], [1, 2, 1], [0, 1, 1]])
    train = TensorTrain(tuple(cores))
    expected = torch.autograd.grad(train.at(digits).square().sum(), cores)
    for found, wanted in zip(torch.autograd.grad(entries(train, digits).square().sum(), cores), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("index_sets", ["cohort", "scan", "every_voxel"])
def test_lazy_scans_and_dense_images_are_decoded_alike(index_sets: str) -> None:
    network, image = autoencoder(index_sets=index_sets), images(2)
    centres = torch.tensor([[[1, 3, 3], [2, 5, 2]], [[1, 1, 1], [2, 6, 6]]])
    if index_sets == "scan":
        for name in "ab":
            network.indices.keep(name, network.grid.encode(torch.randint(1, 4, (4, 3))))
        network.train()  # only then are seeds kept
    found = network(image, centres, ["a", "b"])
    assert found.shape == (2, 2, 1, 3, 3, 3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(network(lazy(image), centres, ["a", "b"]), found, rtol=1e-4, atol=1e-5)


def test_a_patch_is_what_the_decoder_makes_of_the_encoding_around_it() -> None:
    """Against the dense encoding, which exists only here: every voxel, full rank, zero outside of the scan."""
    network, image = autoencoder(index_sets="every_voxel", rank=64), images(1)
    values = network.encode(network.source(image).patches(network.indices.voxels()))
    assert network.indices.codes().unique().numel() == image[0, 0].numel()
    encoding = torch.empty(*SHAPE, 4)
    encoding[tuple(network.indices.voxels().T)] = values[0].detach()
    padded = torch.nn.functional.pad(encoding.movedim(-1, 0), (1, 1, 1, 1, 1, 1))
    expected = network.decoder(padded[None])
    trains = network.compress(image)
    torch.testing.assert_close(network.reconstruct(trains, (0, 0, 0), SHAPE), expected, rtol=1e-3, atol=1e-4)
    patch = network(image, torch.tensor([[[1, 4, 4]]]))[0, 0]
    torch.testing.assert_close(patch, expected[0, :, 0:3, 3:6, 3:6], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        network.reconstruct(trains, (1, 2, 3), (2, 7, 8)), expected[:, :, 1:2, 2:7, 3:8], rtol=1e-3, atol=1e-4
    )
    with pytest.raises(ValueError, match="leaves the scan"):
        network.reconstruct(trains, (0, 0, 0), (4, 8, 9))


@torch.no_grad()
def test_less_rank_keeps_less_of_the_encoding() -> None:
    network, image = autoencoder(index_sets="every_voxel", rank=32), images(2)
    voxels = network.indices.voxels()[None].expand(2, -1, -1)
    whole = network.encodings(network.compress(image), voxels)
    errors = []
    for network.kept_rank in (1, 2, 4, 8):
        trains = network.compress(image)
        assert max(trains[0].ranks) <= network.kept_rank
        errors.append(float((network.encodings(trains, voxels) - whole).norm()))
        exact = autoencoder(index_sets="every_voxel", rank=network.kept_rank)
        exact.encoder.load_state_dict(network.encoder.state_dict())
        best = float((exact.encodings(exact.compress(image), voxels) - whole).norm())
        assert errors[-1] <= len(network.grid.modes) ** 0.5 * best, "TT-rounding is quasi-optimal"
    assert all(more > less > 0 for more, less in pairwise(errors))


def test_gradients_reach_encoder_and_decoder_through_a_truncated_train() -> None:
    network = autoencoder(train_ranks=[2]).train()
    network(images(2), torch.tensor([[[1, 3, 3]], [[2, 4, 4]]])).square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert bool(torch.isfinite(weight.grad).all()), name
    assert float(network.encoder.layers[0].weight.grad.abs().max()) > 0
    assert max(network.compress(images(2))[0].ranks) <= 2, "training truncates to one of train_ranks"
    assert not any(name.startswith(("head", "basis")) for name in network.state_dict())


def test_an_image_of_one_slice_has_a_decoder_of_two_dimensions() -> None:
    network = autoencoder((1, 8, 8))
    assert network.patch_shape == (1, 3, 3)
    assert network.decoder.reach == (0, 1, 1)
    assert network.decoder.layers[0].kernel_size == (1, 3, 3)
    found = network(torch.rand(2, 1, 1, 8, 8), torch.tensor([[[0, 3, 3]], [[0, 4, 6]]]))
    assert found.shape == (2, 1, 1, 1, 3, 3)


def test_empty_background_is_decoded_to_zero() -> None:
    network, image = autoencoder(index_sets="every_voxel", rank=64), torch.zeros(1, 1, *SHAPE)
    assert float(network.reconstruct(network.compress(image), (0, 0, 0), SHAPE).abs().max()) < 1e-6
    image[0, 0, 2, 4, 4] = 1
    assert float(network.reconstruct(network.compress(image), (0, 0, 0), SHAPE).abs().max()) > 1e-3


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="must be odd"):
        autoencoder(patch=4)
    with pytest.raises(ValueError, match=r"`train_ranks` \[9\] lie outside 1 ... 4"):
        autoencoder(train_ranks=[2, 9])
    with pytest.raises(ValueError, match="decodes a tensor train"):
        autoencoder(index_sets="random_voxels")
    with pytest.raises(ValueError, match="`grid_step` is 2"):
        autoencoder(grid_step=2)
    with pytest.raises(ValueError, match="odd along each axis"):
        PatchDecoder(kernel_size=(2, 3, 3))


def test_targets_are_the_scan_s_own_voxels_in_the_foreground() -> None:
    image = images(1)
    scan = lazy(image)[0]
    held_out = SampleTargetsd("image", (3, 3, 3), count=20, threshold=0.05, seed=4)
    item = held_out({"image": scan, "subject": "a"})
    assert item["centres"].shape == (20, 3)
    assert item["target"].shape == (20, 1, 3, 3, 3)
    for (i, j, k), patch in zip(item["centres"].tolist(), item["target"], strict=True):
        torch.testing.assert_close(patch, image[0, :, i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2])
    assert float(item["target"].amax((1, 2, 3, 4)).min()) > 0.05
    again = held_out({"image": scan, "subject": "a"})
    assert torch.equal(again["centres"], item["centres"])
    assert not torch.equal(held_out({"image": scan, "subject": "b"})["centres"], item["centres"])
    flat = SampleTargetsd("image", (1, 3, 3), count=5)({"image": scan, "subject": "a"})
    assert flat["target"].shape == (5, 1, 1, 3, 3)


def test_training_targets_follow_the_random_state() -> None:
    scan = lazy(images(1))[0]
    sampling = SampleTargetsd("image", (3, 3, 3), count=20)
    first, second = (sampling.set_random_state(seed=1)({"image": scan})["centres"] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(sampling({"image": scan})["centres"], second)


def test_targets_say_what_is_wrong() -> None:
    scan = lazy(images(1))[0]
    with pytest.raises(ValueError, match="exceed"):
        SampleTargetsd("image", (5, 5, 5))({"image": scan})
    with pytest.raises(ValueError, match="odd edges"):
        SampleTargetsd("image", (2, 3, 3))
    with pytest.raises(TypeError, match="put SampleTargetsd behind VirtualScand"):
        SampleTargetsd("image", (3, 3, 3))({"image": images(1)})

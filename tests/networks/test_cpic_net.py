"""The whole network: every way to hand it a scan, and scans that hold next to nothing."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from scans import SHAPE, images, lazy, small_network
from torch import Tensor

from cpic_monai.networks import CPICNet
from cpic_monai.tensor_train import TensorTrain, tt_svd

MODES = ["cohort", "scan", "every_voxel"]
modes = pytest.mark.parametrize("index_sets", MODES)


def dense_trains(network: CPICNet, image: Any, **more: Any) -> Tensor:
    with torch.no_grad():
        return torch.stack([t.full() for t in network.decompose(image, **more)])


@modes
def test_forward_without_tabular_values(index_sets: str) -> None:
    network, image = small_network(index_sets=index_sets), images(2)
    network.basis.fit(network.decompose(images(5, seed=1)))
    out = network(image)
    assert out.shape == (2, 3)
    assert out.dtype == torch.float32
    assert bool((out.diff(dim=1) >= 0).all())
    assert torch.equal(out, network(image, torch.zeros(2, 1)))
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("channels", [1, 4])
def test_dense_image_patches_and_lazy_scans_are_one(channels: int, draws: int) -> None:
    network, image = small_network(in_channels=channels, draws=draws), images(3, channels)
    network.basis.fit(network.decompose(images(6, channels, seed=1)))
    patches = network.source(lazy(image)).patches(network.voxels())
    assert patches.shape == (3, len(network.voxels()), channels, 5, 5, 5)
    expected = network(image)
    torch.testing.assert_close(network(patches), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network(lazy(image)), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network(image[1:2]), expected[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unfolding", ["tt", "grouped", "fused"])
def test_other_unfoldings(unfolding: str) -> None:
    network, image = small_network(unfolding=unfolding), images(2)
    network.basis.fit(network.decompose(images(5, seed=1)))
    torch.testing.assert_close(network(lazy(image)), network(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid_step", [1, 2])
def test_own_index_sets_read_lazy_scans_as_dense_ones(grid_step: int) -> None:
    network, image = small_network(index_sets="scan", grid_step=grid_step).train(), images(3)
    seeds = {f"s{i}": network.grid.encode(torch.randint(1, 4, (3, 3))) for i in range(3)}
    for name, codes in seeds.items():
        network.indices.keep(name, codes)
    dense = dense_trains(network, image, subjects=list(seeds))
    torch.testing.assert_close(dense_trains(network, lazy(image), subjects=list(seeds)), dense, rtol=1e-3, atol=1e-4)


def test_own_index_sets_do_not_depend_on_the_batch() -> None:
    network, image = small_network(index_sets="scan"), images(3)
    together = dense_trains(network, image, subjects=["a", "b", "c"])[0]
    for i, name in enumerate("abc"):
        alone = dense_trains(network, image[i : i + 1], subjects=[name])[0]
        torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-4)


def test_rows_share_their_scan() -> None:
    network, image = small_network(), images(2)
    network.basis.fit(network.decompose(images(5, seed=1)))
    tabular = torch.randn(4, 1)
    index = torch.tensor([1, 0, 1, 1])
    out = network(image, tabular, index)
    torch.testing.assert_close(out, network(image[index], tabular), rtol=1e-4, atol=1e-5)


def test_context_scales_are_channels() -> None:
    network, image = small_network(in_channels=2, scales=(1, 2)), images(2)
    source = network.source(lazy(image))
    patches = source.patches(network.voxels())
    assert patches.shape[2] == 2
    assert torch.equal(patches[:, :, :1], small_network().source(lazy(image)).patches(network.voxels()))
    assert network(lazy(image)).shape == (2, 3)


def test_background_is_zero_in_every_channel() -> None:
    network = small_network()
    values = network.encode(torch.zeros(2, 7, 1, 5, 5, 5))
    assert values.shape == (2, 7, 4)
    torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-7)


def test_every_voxel_is_the_tt_svd_of_the_dense_encoding() -> None:
    network, image = small_network(index_sets="every_voxel"), images(2)
    layers = network.encoder.layers
    dense = layers(torch.nn.functional.pad(image, [2] * 6)) - layers(torch.zeros(1, 1, 5, 5, 5))
    dense = dense.detach().permute(0, 2, 3, 4, 1).double()
    found = dense_trains(network, image)[0]
    torch.testing.assert_close(found, tt_svd(network.grid.unfold(dense), 3).full(), rtol=1e-3, atol=1e-6)
    exact = small_network(index_sets="every_voxel", rank=64)
    exact.encoder.load_state_dict(network.encoder.state_dict())
    (train,) = exact.decompose(image)
    torch.testing.assert_close(exact.grid.fold(train.full().detach()), dense, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("content", ["zero", "constant", "single voxel"])
@modes
def test_scans_that_hold_next_to_nothing(index_sets: str, content: str) -> None:
    network = small_network(index_sets=index_sets)
    network.basis.fit([t.detach() for t in network.decompose(images(5, seed=1))])
    image = torch.full((2, 1, *SHAPE), 0.7 if content == "constant" else 0.0)
    if content == "single voxel":
        image[:, :, 2, 3, 3] = 1.0
    image.requires_grad_()
    trains = network.decompose(image)
    loss = sum((t.full().square().sum() for t in trains), torch.zeros(()))
    loss = loss + network.predict(network.basis(trains)).square().mean()
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [image.grad, *(p.grad for p in network.encoder.parameters())]
    for gradient in gradients:
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        # Values lie in (0, 1) and there are 1,024 of them: a well-conditioned gradient stays of that order.
        assert float(gradient.abs().max()) < 1e3


def test_index_batching_gives_the_same_gradients() -> None:
    image = images(2)
    found = []
    for limit in (None, 20_000):
        torch.manual_seed(3)
        network = small_network(index_batch_bytes=limit)
        (train,) = network.decompose(image)
        train.full().square().sum().backward()
        found.append((train.full().detach(), [p.grad for p in network.encoder.parameters()]))
    assert limit is not None
    assert limit // network.encoder.bytes_per_patch() < 2 * len(network.voxels()) / 4, "more than four pieces"
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-9)
    whole, pieces = (torch.cat([g.flatten() for g in grads]) for _, grads in found)
    assert float((whole - pieces).norm()) <= 5e-6 * float(whole.norm())  # float32 sums in another order


def test_moving_basis_follows_the_batches_in_training_alone() -> None:
    network = small_network(moving_basis=True)
    network.train()
    network(images(3))
    assert network.basis.scans == 3
    network.eval()
    network(images(2))
    assert network.basis.scans == 3
    fixed = small_network().train()
    fixed(images(3))
    assert fixed.basis.scans == 0


@pytest.mark.parametrize("index_sets", MODES)
def test_checkpoint_predicts_on_its_own(index_sets: str) -> None:
    network, image, names = small_network(index_sets=index_sets), images(3), ["a", "b", "c"]
    network.basis.fit(network.decompose(images(6, seed=1), [f"t{i}" for i in range(6)]))
    expected = network(image, subjects=names)
    file = io.BytesIO()
    torch.save({"model": network.state_dict()}, file)
    file.seek(0)
    torch.manual_seed(99)
    other = small_network(index_sets=index_sets, seed=5)
    other.load_state_dict(torch.load(file, weights_only=True)["model"])
    torch.testing.assert_close(other(image, subjects=names), expected, rtol=1e-5, atol=1e-6)


def test_looked_at_lists_each_voxel_once() -> None:
    for index_sets in ("cohort", "scan"):
        network, image = small_network(index_sets=index_sets), images(2)
        looked = network.looked_at(image, ["a", "b"])
        assert len(looked) == 2
        for voxels in looked:
            assert len(voxels.unique(dim=0)) == len(voxels)
    assert torch.equal(small_network().looked_at(images(1))[0], small_network().voxels())


def test_shared_voxels() -> None:
    assert small_network().shared_voxels
    network = small_network(index_sets="scan")
    assert not network.shared_voxels
    with pytest.raises(TypeError, match="leave SamplePatchesd out"):
        network.voxels()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 1, 4, 8, 9), r"\(4, 8, 9\) voxels .* grid \(4, 8, 8\)"),
        (torch.zeros(1, 2, 4, 8, 8), "`in_channels`"),
        (torch.zeros(4, 8, 8), r"expected \(B, C, D, H, W\)"),
        (torch.zeros(1, 3, 1, 5, 5, 5), "3 values a scan for"),
        (torch.zeros(1, 3, 1, 7, 7, 7), "`patch_size`"),
    ],
)
def test_wrong_shapes_are_refused(image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_network()(image)


def test_wrong_lazy_scans_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="after preprocessing"):
        small_network()(lazy(torch.zeros(1, 1, 4, 8, 9)))
    with pytest.raises(ValueError, match="'none' is none of"):
        small_network(index_sets="none")


def test_gauge_free_features() -> None:
    """Two cross-approximations of the same exact train give the same features, however their cores differ."""
    network = small_network(index_sets="every_voxel", rank=3)
    (train,) = network.decompose(images(5))
    network.basis.fit([train])
    turned = TensorTrain(tuple(-c if k < 2 else c for k, c in enumerate(train.cores)))
    torch.testing.assert_close(network.basis([turned]), network.basis([train]))


def test_a_scan_never_seen_is_predicted_alike_in_any_company() -> None:
    network, image = small_network(index_sets="scan"), images(4)
    network.basis.fit(network.decompose(images(5, seed=1)))
    torch.testing.assert_close(network(image)[2:3], network(image[2:3]), rtol=1e-4, atol=1e-5)
    before = network.looked_at(image[:1])[0]
    network.indices.forget(draw=1)
    assert not torch.equal(before, network.looked_at(image[:1])[0]), "a new draw looks elsewhere"


@pytest.mark.parametrize(
    "index_sets", [*(m for m in MODES if m != "scan"), "tangent", "random_voxels", "picked_values"]
)
def test_a_coarse_grid_looks_at_the_middle_of_its_cells(index_sets: str) -> None:
    network, image = small_network(index_sets=index_sets, grid_step=2), images(2)
    network.basis.fit(network.decompose(images(5, seed=1)))
    assert network.grid.cells == tuple(-(-n // 2) for n in SHAPE)
    torch.testing.assert_close(network(lazy(image)), network(image), rtol=1e-4, atol=1e-5)
    inside = network.voxels()[network.grid.inside(network.grid.encode(network.voxels()))]
    assert len(inside)
    assert torch.equal(inside % 2, torch.tensor(network.grid.offset).expand_as(inside))


def test_every_cell_is_the_tt_svd_of_every_second_encoding() -> None:
    fine = small_network(index_sets="every_voxel", rank=64)
    coarse = small_network(index_sets="every_voxel", rank=64, grid_step=2)
    coarse.encoder.load_state_dict(fine.encoder.state_dict())
    image = images(2)
    (all_voxels,), (cells,) = fine.decompose(image), coarse.decompose(image)
    places = [slice(o, None, 2) for o in coarse.grid.offset]
    expected = fine.grid.fold(all_voxels.full().detach())[(slice(None), *places)]
    torch.testing.assert_close(coarse.grid.fold(cells.full().detach()), expected, rtol=1e-4, atol=1e-6)


def test_a_dense_image_has_no_scales() -> None:
    network = small_network(scales=(2,))
    with pytest.raises(ValueError, match=r"this network has `scales` \[2\]: give lazy scans"):
        network(images(2))


def test_a_moving_basis_of_other_draws_is_an_error() -> None:
    network = small_network(draws=2)
    network.basis.fit(network.decompose(images(4)))
    with pytest.raises(ValueError, match="1 draws of index sets meet a basis of 2"):
        network.basis.update(network.decompose(images(3))[:1])


def test_a_stranger_is_not_looked_at_as_the_scan_of_that_name() -> None:
    network, image = small_network(index_sets="scan").train(), images(2)
    mine = dense_trains(network, image[:1], subjects=["1"])[0]
    kept = network.indices.kept(["1"])
    network.eval()
    stranger = network.decompose(image[1:], ["1"])
    assert torch.equal(stranger[0].full(), network.decompose(image[1:], ["new"])[0].full())
    assert network.indices.kept(["new"]) is None, "evaluation leaves the checkpoint as it is"
    network.train()
    torch.testing.assert_close(dense_trains(network, image[:1], subjects=["1"])[0], mine)
    assert torch.equal(network.indices.kept(["1"]), kept)

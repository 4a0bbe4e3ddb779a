"""Attribution against finite differences, and label maps against the geometry of the view."""

from __future__ import annotations

import copy

import itk
import nibabel
import numpy as np
import pytest
import torch
from scans import images, lazy, small_network

from cpic_monai.attribution import CLASSES, Explained, attribution_classes, explain, label_map, source_voxels
from cpic_monai.handlers.select import select_index_sets
from cpic_monai.label import write_label_map
from cpic_monai.networks import CPICNet
from cpic_monai.networks.heads import LogitHead
from cpic_monai.transforms import VirtualScan
from cpic_monai.volumes import ArrayVolume


def fitted(**settings):
    """A network whose basis and features are of the size that training leaves."""
    network = small_network(**settings)
    scans = lazy(images(5, seed=1))
    with torch.no_grad():
        network.basis.fit(network.decompose(scans, [f"basis {n}" for n in range(5)]))
    return network


@pytest.mark.parametrize("settings", [{"draws": 2}, {"index_sets": "scan"}, {"index_sets": "every_voxel"}])
def test_prediction_is_the_networks(settings):
    network = fitted(**settings)
    scan = lazy(images(1, seed=7))[0]
    tabular = torch.tensor([[0.0], [1.0]])
    explained = explain(network, scan, tabular, subject="new")
    with torch.no_grad():
        expected = network([scan], tabular, torch.zeros(2, dtype=torch.int64), ["new"])
    torch.testing.assert_close(explained.quantiles, expected)
    looked = torch.unique(network.grid.encode(network.looked_at([scan], ["new"])[0]))
    looked = looked[network.grid.inside(looked)]
    assert torch.equal(torch.unique(network.grid.encode(explained.voxels)), looked)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_attribution_is_the_derivative_along_each_encoding():
    network = fitted(draws=3)
    scan = lazy(images(1, seed=7))[0]
    tabular = torch.tensor([[0.5]])
    explained = explain(network, scan, tabular)
    codes = network.indices.codes()
    with torch.no_grad():
        values = network.encode(network.source([scan]).patches(network.voxels())).double()
        head = copy.deepcopy(network.head).double()  # differences of float32 medians would be noise

        def median(scaled: torch.Tensor) -> float:
            return float(head(network.basis(network.indices.decompose(scaled)), tabular)[0, 1])

        order = explained.attribution.abs().argsort(descending=True)
        for row in [*order[:6].tolist(), *order[-3:].tolist()]:
            here = (codes == network.grid.encode(explained.voxels[row])).double()[None, :, None]
            step = 1e-4
            slope = (median(values * (1 + step * here)) - median(values * (1 - step * here))) / (2 * step)
            assert slope == pytest.approx(float(explained.attribution[row]), rel=1e-3, abs=1e-6)
    assert explained.attribution.abs().max() > 1e-4


def test_change_between_visits_is_the_difference_of_the_two():
    network = fitted(draws=2)
    scan = lazy(images(1, seed=7))[0]
    visits = torch.tensor([[0.0], [1.0], [2.0]])
    last, first = (explain(network, scan, visits, visit=n).attribution for n in (-1, 0))
    change = explain(network, scan, visits, since=0).attribution
    torch.testing.assert_close(change, last - first, rtol=1e-4, atol=1e-7)
    assert (explain(network, scan, visits, since=-1).attribution == 0).all()


def test_air_has_no_attribution():
    network = CPICNet((8, 16, 16), channels=4, features=(3,), rank=3, draws=2).eval()
    image = torch.zeros(5, 1, 8, 16, 16)
    image[:, :, :4, :8, :8] = torch.rand((5, 1, 4, 8, 8))
    scans = lazy(image)
    select_index_sets(network, [{"image": scan} for scan in scans])
    with torch.no_grad():
        network.basis.fit(network.decompose(scans))
    explained = explain(network, scans[0])
    reach = network.patch_size // 2
    full = torch.nn.functional.max_pool3d(image[:1], 2 * reach + 1, 1, reach)[0, 0]
    dark = full[tuple(explained.voxels.T)] == 0
    assert dark.any()
    largest = explained.attribution[~dark].abs().max()
    assert largest > 1e-4
    assert explained.attribution[dark].abs().max() < 1e-6 * largest


def test_refusals():
    network = fitted()
    with pytest.raises(ValueError, match=r"call eval\(\)"):
        explain(network.train(), lazy(images(1))[0])
    image = images(1)
    image[..., 2, 4, 4] = float("nan")
    with pytest.raises(ValueError, match="scan mine holds NaN"):
        explain(network.eval(), lazy(image)[0], subject="mine")
    with pytest.raises(ValueError, match="must rise"):
        attribution_classes(torch.zeros(3), 0.9, 0.5)


def test_classes_are_quantiles_of_size_with_sign():
    sizes = torch.arange(1.0, 101.0, dtype=torch.float64)
    signs = torch.where(torch.arange(100) % 2 == 0, 1.0, -1.0).double()
    classes = attribution_classes(sizes * signs)
    assert (classes[:50] == CLASSES["picked"]).all()
    assert (classes[50:90] == CLASSES["weak"]).all()
    assert (classes[90::2] == CLASSES["raises"]).all()
    assert (classes[91::2] == CLASSES["lowers"]).all()
    assert (attribution_classes(torch.zeros(5, dtype=torch.float64)) == CLASSES["picked"]).all()
    assert attribution_classes(torch.zeros(0)).shape == (0,)


def view(to_source, shape, source=(6, 8, 10)) -> VirtualScan:
    return VirtualScan(ArrayVolume(np.zeros(source, np.float32)), np.asarray(to_source, float), shape)


def test_every_voxel_of_the_file_belongs_to_one_of_the_view():
    """Flipped, permuted, 2 x 1.6 x 2.5 coarser: the view's voxels part the file's among them."""
    matrix = np.zeros((4, 4))
    matrix[0, 2], matrix[1, 0], matrix[2, 1], matrix[3, 3] = -2.0, 1.6, 2.5, 1
    matrix[:3, 3] = [4.5, 0.3, 0.75]
    scan = view(matrix, (5, 4, 3))
    every = np.argwhere(np.ones((5, 4, 3), bool))
    places, row = source_voxels(scan, every)
    assert len(places) == len(np.unique(places, axis=0)) == 6 * 8 * 10
    mapped = (places - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T
    assert np.abs(mapped - every[row]).max() <= 0.5 + 1e-6


def test_a_finer_view_marks_the_nearest_voxel_and_the_larger_attribution_shows():
    matrix = np.diag([0.25, 0.25, 0.25, 1.0])
    matrix[:3, 3] = -0.375
    voxels = torch.tensor([[0, 0, 0], [1, 0, 0], [20, 20, 20], [23, 31, 39], [4, 4, 4]])
    attribution = torch.tensor([5.0, -6.0, 0.1, 0.2, 0.3], dtype=torch.float64)
    labels = label_map(view(matrix, (24, 32, 40)), Explained(torch.zeros(1, 3), voxels, attribution))
    assert labels.shape == (6, 8, 10)
    assert sorted(map(tuple, np.argwhere(labels))) == [(0, 0, 0), (1, 1, 1), (5, 5, 5), (5, 7, 9)]
    assert labels[0, 0, 0] == CLASSES["lowers"]


def test_voxels_beyond_the_file_are_left_out():
    matrix = np.eye(4)
    matrix[:3, 3] = [-2, 0, 0]  # the view is padded by two voxels on each side
    explained = Explained(torch.zeros(1, 3), torch.tensor([[0, 0, 0], [2, 3, 4], [9, 3, 4]]), torch.zeros(3).double())
    labels = label_map(view(matrix, (10, 8, 10)), explained)
    assert np.argwhere(labels).tolist() == [[0, 3, 4]]


def test_large_files_are_refused():
    volume = ArrayVolume(np.broadcast_to(np.float32(0), (2048, 2048, 1024)))
    scan = VirtualScan(volume, np.diag([64.0, 64.0, 64.0, 1.0]), (32, 32, 16), subject="big")
    with pytest.raises(ValueError, match="big: a label map of"):
        label_map(scan, Explained(torch.zeros(1, 3), torch.zeros((1, 3), dtype=torch.int64), torch.zeros(1).double()))


OBLIQUE = np.array([[1.9, 0.3, 0.1, -20], [-0.3, 1.9, -0.4, 4], [-0.155, 0.3646, 3.9806, 9], [0, 0, 0, 1.0]])


def test_files_lie_where_the_scan_lies(tmp_path):
    q, _ = np.linalg.qr(OBLIQUE[:3, :3])
    affine = OBLIQUE.copy()
    affine[:3, :3] = q @ np.diag([2.0, 1.5, 4.0])
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[1, 2, 3], labels[4, 0, 6] = 3, 4
    nifti = nibabel.load(write_label_map(tmp_path / "a.nii.gz", labels, affine))
    assert nifti.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(nifti.dataobj), labels)
    np.testing.assert_allclose(nifti.affine, affine, atol=1e-5)
    np.testing.assert_allclose(nifti.get_qform(), affine, atol=1e-4)
    nrrd = itk.imread(str(write_label_map(tmp_path / "a.nrrd", labels, affine)))
    np.testing.assert_array_equal(itk.array_view_from_image(nrrd).T, labels)
    for voxel in ([1, 2, 3], [4, 0, 6]):
        point = np.array(nrrd.TransformIndexToPhysicalPoint(voxel)) * [-1, -1, 1]
        np.testing.assert_allclose(point, nibabel.affines.apply_affine(affine, voxel), atol=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "a.nrrd"]


def test_files_that_cannot_hold_it_are_refused(tmp_path):
    labels = np.zeros((2, 2, 2), np.uint8)
    with pytest.raises(ValueError, match=r"result_extension"):
        write_label_map(tmp_path / "a.png", labels, np.eye(4))
    sheared = np.eye(4)
    sheared[0, 2] = 0.3
    with pytest.raises(ValueError, match="right angles"):
        write_label_map(tmp_path / "a.nrrd", labels, sheared)
    np.testing.assert_allclose(nibabel.load(write_label_map(tmp_path / "a.nii", labels, sheared)).affine, sheared)


@pytest.mark.parametrize("classes", [2, 3])
def test_of_classes_the_probability_is_explained(classes):
    """Against finite differences of the log odds of two, the log probability of one of three."""
    network = fitted(draws=2, quantiles=classes)
    network.head.__class__ = LogitHead  # the same layers, another order of outputs
    scan, tabular = lazy(images(1, seed=7))[0], torch.tensor([[0.5]])
    codes = network.indices.codes()
    with torch.no_grad():
        values = network.encode(network.source([scan]).patches(network.voxels())).double()
        head = copy.deepcopy(network.head).double()

        def score(scaled, k):
            logits = head(network.basis(network.indices.decompose(scaled)), tabular)[0]
            return float(logits[k] - logits[1 - k]) if classes == 2 else float(logits.log_softmax(0)[k])

        likely = int(explain(network, scan, tabular).quantiles[0].argmax())
        for chosen, k in ((None, 1 if classes == 2 else likely), (0, 0)):
            explained = explain(network, scan, tabular, output=chosen)
            assert explained.output == k
            row = int(explained.attribution.abs().argmax())
            here = (codes == network.grid.encode(explained.voxels[row])).double()[None, :, None]
            slope = (score(values * (1 + 1e-4 * here), k) - score(values * (1 - 1e-4 * here), k)) / 2e-4
            assert slope == pytest.approx(float(explained.attribution[row]), rel=1e-3, abs=1e-6)
    with pytest.raises(ValueError, match=f"there are {classes} classes, counted from 0, and no class 5"):
        explain(network, scan, tabular, output=5)

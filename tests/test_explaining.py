"""Maps in the scan's own space, whatever the view; references; and the share that lands in a known region."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scans import images, lazy, small_network

from cpic_monai.attribution import (
    Explained,
    attribution_map,
    basis_encoding,
    explain,
    label_map,
    mean_encoding,
)
from cpic_monai.explaining import Explanation
from cpic_monai.networks import ScanResNet
from cpic_monai.networks.heads import LogitHead
from cpic_monai.transforms import VirtualScan
from cpic_monai.volumes import ArrayVolume

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from attribution_share import shares, table, view_mask, within

KINDS = ["cohort", "scan", "every_voxel", "picked_values", "random_voxels", "tangent"]


def fitted(**settings):
    network = small_network(**settings)
    with torch.no_grad():
        network.basis.fit(network.decompose(lazy(images(5, seed=1)), [f"basis {n}" for n in range(5)]))
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_a_scan_that_is_the_reference_has_no_attribution(kind):
    """A basis of one scan, repeated, is its own mean: nothing sets it apart where the train is exact."""
    network = small_network(index_sets=kind, draws=1 if kind in ("scan", "every_voxel") else 2)
    scan = lazy(images(1, seed=3))[0]
    others = lazy(images(4, seed=1))
    with torch.no_grad():
        network.basis.fit(network.decompose([scan, *others], [f"s{n}" for n in range(5)]))
    cohort = explain(network, scan, subject="s0", reference="cohort")
    air = explain(network, scan, subject="s0")
    assert torch.equal(cohort.voxels, air.voxels)
    assert cohort.attribution.abs().max() > 0
    assert not torch.allclose(cohort.attribution, air.attribution)
    if kind in ("picked_values", "random_voxels"):
        exact = explain(network, scan, subject="s0", reference=mean_encoding(network, [scan, *others]))
        torch.testing.assert_close(cohort.attribution, exact.attribution, rtol=1e-4, atol=1e-7)
    if kind != "scan":
        alone = explain(network, scan, subject="s0", reference=mean_encoding(network, [scan]))
        assert alone.attribution.abs().max() < 1e-6 * air.attribution.abs().max()


def test_the_basis_interpolates_its_scans_mean():
    network = fitted(index_sets="every_voxel", rank=64)
    exact = mean_encoding(network, lazy(images(5, seed=1)))
    (mean,) = basis_encoding(network, [network.indices.codes()])
    torch.testing.assert_close(mean, exact, rtol=1e-4, atol=1e-5)


def test_references_that_cannot_be_are_refused():
    network, scan = fitted(), lazy(images(1))[0]
    with pytest.raises(ValueError, match="`reference`: 'mean' is none of air, cohort"):
        explain(network, scan, reference="mean")
    with pytest.raises(ValueError, match="they must be those of the network's present voxels"):
        explain(network, scan, reference=torch.zeros(3, 4))
    network.basis.clear()
    with pytest.raises(ValueError, match="needs a fitted canonical basis"):
        explain(network, scan, reference="cohort")
    with pytest.raises(ValueError, match="scans share no voxels"):
        mean_encoding(fitted(index_sets="scan"), [scan])


@pytest.mark.parametrize("step", [0.25, 1.0, 2.0])
def test_the_maps_sum_is_that_of_the_attributions(step):
    matrix = np.diag([step, step, step, 1.0])
    matrix[:3, 3] = (step - 1) / 2
    shape = tuple(int(n / step) for n in (6, 8, 10))
    scan = VirtualScan(ArrayVolume(np.zeros((6, 8, 10), np.float32)), matrix, shape)
    voxels = torch.from_numpy(np.argwhere(np.ones(shape, bool))[::3].copy())
    values = torch.randn(len(voxels), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    explained = Explained(torch.zeros(1, 3), voxels, values)
    drawn = attribution_map(scan, explained)
    assert drawn.dtype == np.float32
    assert drawn.shape == (6, 8, 10)
    assert drawn.sum(dtype=np.float64) == pytest.approx(float(values.sum()), abs=1e-4)
    assert not drawn[label_map(scan, explained) == 0].any()


def scan_and_fibrosis():
    """Two channels on a turned grid: the view's axes are the file's (k, j, i), i flipped."""
    affine = np.array([[0, 0, -2.0, 30], [0, 1.5, 0, -10], [3.0, 0, 0, 5], [0, 0, 0, 1]])
    to_source = np.array([[0, 0, -1.0, 7], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    image = images(1, channels=2, seed=4)[0].numpy()  # (2, 4, 8, 8) as viewed
    files = [ArrayVolume(np.ascontiguousarray(c.transpose(2, 1, 0)[::-1]), affine) for c in image]
    return VirtualScan(files, to_source, (4, 8, 8), subject="P 1"), affine


def test_files_lie_on_the_scan_and_say_what_moved_it(tmp_path):
    network = small_network(in_channels=2, draws=2)
    with torch.no_grad():
        network.basis.fit(network.decompose(lazy(images(5, channels=2, seed=1))))
    scan, affine = scan_and_fibrosis()
    item = {
        "subject": "P 1", "image": scan, "tabular": torch.zeros(2, 1), "scale": torch.full((2, 1), 100.0),
        "visit": torch.tensor([[0.0], [52.0]]),
    }  # fmt: skip
    (entry,) = Explanation(network, [item], tmp_path, target_name="FVC", unit="mL").run()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "P_1_attribution.nii.gz",
        "P_1_picked.nii.gz",
        "explained.json",
    ]
    picked, moved = (nibabel.load(tmp_path / entry["files"][name]) for name in ("picked", "attribution"))
    for image in (picked, moved):
        assert image.shape == scan.volumes[0].shape == (8, 8, 4)
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    assert picked.get_data_dtype() == np.uint8
    assert moved.get_data_dtype() == np.float32
    expected = explain(network, scan, item["tabular"], reference="cohort")
    values = np.asarray(moved.dataobj)
    for voxel, value in zip(expected.voxels.numpy(), expected.attribution.numpy(), strict=True):
        i, j, k = (scan.to_source @ [*voxel, 1])[:3].astype(int)
        assert values[i, j, k] == pytest.approx(100 * value, rel=1e-5, abs=1e-6)
        assert np.asarray(picked.dataobj)[i, j, k] > 0
    assert entry["voxels"] == (np.asarray(picked.dataobj) > 0).sum()
    assert values.sum(dtype=np.float64) == pytest.approx(entry["raised_by"] + entry["lowered_by"], abs=1e-3)
    content = json.loads((tmp_path / "explained.json").read_text())
    assert (content["unit"], content["reference"], content["scans"][0]["visit"]) == ("mL", "cohort", 52.0)


def test_two_subjects_of_one_file_name_are_refused(tmp_path):
    items = [{"subject": "a/b"}, {"subject": "a b"}]
    with pytest.raises(ValueError, match="would be named a_b"):
        Explanation(fitted(), items, tmp_path, target_name="FVC", unit="mL").run()


def test_share_of_a_region_counts_voxels_of_the_view():
    network = fitted()
    scan = lazy(images(1, seed=4))[0]
    item = {"image": scan, "tabular": torch.zeros(1, 1), "subject": "S"}
    half = torch.zeros(scan.shape, dtype=torch.bool)
    half[:, :4] = True
    found, other, whole = (shares(network, item, region, 0.0, {"air": "air"}) for region in (half, ~half, half | ~half))
    for name in ("picked", "foreground", "air, all", "air, lowering"):
        assert found[name]["inside"] + other[name]["inside"] == pytest.approx(1.0, rel=1e-5)
        assert whole[name]["inside"] == pytest.approx(1.0)
        assert found[name]["near"] >= found[name]["inside"]
    explained = explain(network, scan, item["tabular"])
    inside = explained.voxels[:, 1] < 4
    size = explained.attribution.abs()
    assert found["air, all"]["inside"] == pytest.approx(float(size[inside].sum() / size.sum()))


def test_a_mask_is_seen_where_the_scan_is():
    scan, affine = scan_and_fibrosis()
    mask = np.zeros((8, 8, 4), bool)
    mask[6, 2, 3] = True  # of the file, so (3, 2, 1) of the view
    seen = view_mask(scan, mask, affine)
    assert seen.nonzero().tolist() == [[3, 2, 1]]
    near = within(seen, 1)
    assert near.sum() == 2 * 3 * 3, "the cube around it, as far as the view goes"


def test_ratios_are_of_mean_shares():
    patients = [
        {
            name: {"inside": value, "near": value}
            for name, value in zip(("picked", "foreground", "air, all"), row, strict=True)
        }
        for row in ((0.1, 0.2, 0.3), (0.3, 0.2, 0.5))
    ]
    rows = {row["what"]: row for row in table(patients) if row["region"] == "inside"}
    assert rows["air, all"]["mean"] == pytest.approx(0.4)
    assert rows["air, all"]["over_picked"] == pytest.approx(2.0)
    assert rows["air, all"]["over_foreground"] == pytest.approx(2.0)
    assert rows["air, all"]["low"] == pytest.approx(0.3)
    assert rows["picked"]["low_p"] == rows["picked"]["high_p"] == 1.0


def test_a_visit_that_a_scan_lacks_is_refused_before_any_map_is_written(tmp_path):
    scan, _ = scan_and_fibrosis()
    items = [{"subject": name, "image": scan, "tabular": torch.zeros(n, 1)} for name, n in (("long", 5), ("short", 2))]
    with pytest.raises(ValueError, match="scan short has 2 visits, counted from 0, and no visit 4: set config key"):
        Explanation(fitted(), items, tmp_path, target_name="FVC", unit="mL", visit=4).run()
    assert list(tmp_path.iterdir()) == []


def test_the_class_that_is_explained_is_named(tmp_path):
    network = small_network(in_channels=2, draws=2, quantiles=3)
    network.head.__class__ = LogitHead  # the same layers, another order of outputs
    with torch.no_grad():
        network.basis.fit(network.decompose(lazy(images(5, channels=2, seed=1))))
    scan, _ = scan_and_fibrosis()
    item = {"subject": "S", "image": scan, "tabular": torch.zeros(1, 1)}
    given = {"target_name": "grade", "unit": "", "outputs": ["p(mild)", "p(middling)", "p(severe)"]}
    (entry,) = Explanation(network, [item], tmp_path, **given, output="p(severe)").run()
    assert entry["output"] == "p(severe)"
    assert json.loads((tmp_path / "explained.json").read_text())["unit"] == "log probability"
    (entry,) = Explanation(network, [item], tmp_path, **given).run()
    likely = int(explain(network, scan, item["tabular"]).quantiles[0].argmax())
    assert entry["output"] == given["outputs"][likely]
    with pytest.raises(ValueError, match=r"`explain_output` is 'severe'; of classes, name one of p\(mild\), "):
        Explanation(network, [item], tmp_path, **given, output="severe")


def test_a_network_that_picks_no_voxels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"ScanResNet picks no voxels, .*leave configs/resnet.json out"):
        Explanation(ScanResNet((16, 16, 16), depth=10), [], tmp_path, target_name="FVC", unit="mL")

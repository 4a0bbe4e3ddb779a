"""What MONAI Label's stock app runs gives what the bundle's own app gives."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor

from cpic_monai.inferers import QuantileInferer
from cpic_monai.label import RequestedPatchesd, RequestedResultd, RequestInferer, fine_tune
from tests.label.conftest import AFFINE, outcome

ASKED = {"tabular": {"Age": 63, "Sex": "Male", "FVC": 2800}, "visits": [0, 52]}


def stock(bundle, scan, network) -> dict:
    """In the order and with the calls of MONAI Label's ``BasicInferTask``."""
    root = str(bundle.root)
    data = RequestedPatchesd(root)({"model": "x", "image": str(scan), **ASKED})
    with torch.no_grad():
        data["pred"] = RequestInferer()(data["image"][None].to("cpu"), network)[0]
    return RequestedResultd(root)(data)


def test_same_quantiles_and_the_same_voxels(bundle, scans):
    result, labels, affine = bundle.predict(str(scans[1]), ASKED)
    data = stock(bundle, scans[1], bundle.network)
    assert [row["visit"] for row in data["result"]["predictions"]] == [0, 52]
    for mine, others in zip(result["predictions"], data["result"]["predictions"], strict=True):
        np.testing.assert_allclose(list(others.values()), list(mine.values()), rtol=1e-5)
    assert data["result"]["looked_at"] == {"voxels": result["looked_at"]["voxels"]}
    drawn = np.asarray(data["pred"])
    assert drawn.shape == (1, 12, 10, 8)
    np.testing.assert_array_equal(drawn[0], labels > 0)
    np.testing.assert_allclose(data["pred"].affine, AFFINE)
    np.testing.assert_allclose(affine, AFFINE)
    assert data["image"].meta["spatial_shape"] == [12, 10, 8]


def test_a_scan_replaced_under_its_name_is_read_anew(bundle, scans):
    before, other = (stock(bundle, scans[n], bundle.network)["result"]["predictions"] for n in (0, 5))
    scans[0].write_bytes(scans[5].read_bytes())
    assert stock(bundle, scans[0], bundle.network)["result"]["predictions"] == other != before


def test_new_weights_are_taken_up(bundle, scans):
    before = stock(bundle, scans[1], bundle.network)["result"]["predictions"]
    items = [bundle.expected.submitted(p.name, str(p), outcome(n)) for n, p in enumerate(scans)]
    fine_tune(bundle, items)
    after = stock(bundle, scans[1], bundle.network)["result"]["predictions"]
    assert after[1]["q0.5"] != before[1]["q0.5"]
    mine = bundle.predict(str(scans[1]), ASKED)[0]["predictions"]
    np.testing.assert_allclose(after[1]["q0.5"], mine[1]["q0.5"], rtol=1e-5)


def test_evaluators_get_what_its_base_gives(bundle, scans):
    item = bundle.item(str(scans[0]), ASKED)[0]
    scan = bundle.view(item)
    rows = {"tabular": item["tabular"], "scan_index": torch.zeros(2, dtype=torch.int64)}
    with torch.no_grad():
        expected = QuantileInferer()([scan], bundle.network, **rows)
        assert torch.equal(RequestInferer()([scan], bundle.network, **rows), expected)
        patches = bundle.network.source([scan]).patches(bundle.network.voxels())
        plain = QuantileInferer()(patches, bundle.network)
        assert torch.equal(RequestInferer()(MetaTensor(patches), bundle.network), plain)

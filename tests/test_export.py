"""A network as TorchScript and ONNX predicts what it predicts in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scans import SHAPE, images, lazy
from torch import Tensor

import cpic_monai
from cpic_monai.cross.bank import CohortIndexSets
from cpic_monai.export import ScriptableCPICNet, StaticCPIC, export_models, export_onnx, read_checkpoint, write_weights
from cpic_monai.export.static_trains import invert
from cpic_monai.networks import CPICNet

PLACE = str(Path(cpic_monai.__file__).parent).encode()
ROWS = torch.tensor([0, 0, 1, 2, 2])


def fitted(shape: tuple[int, ...] = SHAPE, **settings: Any) -> CPICNet:
    """A network whose basis is six scans and whose index sets were chosen on them; the head is random."""
    given: dict[str, Any] = {"channels": 4, "features": (3,), "rank": 3, "draws": 2, **settings}
    network = ScriptableCPICNet(shape, **given).eval()
    basis = noise(6, shape, network.encoder.in_channels, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        source = network.source(basis)
        seeds = [network.seeds(source, generator).flatten() for _ in range(given["draws"])]
        network.indices.select(
            lambda codes: network.encode(source.patches(network.grid.decode(codes[0]))).double(), seeds, generator
        )
        network.basis.fit(network.decompose(basis))
    return network


def noise(batch: int, shape: tuple[int, ...] = SHAPE, channels: int = 1, seed: int = 0) -> Tensor:
    """Scans full of noise, so that their borders count, too."""
    return torch.rand((batch, channels, *shape), generator=torch.Generator().manual_seed(seed))


def predict(network: torch.nn.Module, image: Tensor, tabular: Tensor | None) -> Tensor:
    with torch.no_grad():
        return network(image, tabular, ROWS)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"unfolding": "fused", "draws": 1},
        {"unfolding": "tt", "tabular_features": 3},
        {"unfolding": "grouped", "shape": (5, 6, 9)},
        {"grid_step": 2, "shape": (9, 16, 11)},
        {"in_channels": 2, "encoder": False},
        {"tabular_features": 0, "ridge": {"relative": 1e-4, "refinements": 0}},
        {"batch_norm": True, "in_channels": 4},
        {"pooling": 3, "channel_norm": True},
        {"index_sets": "tangent", "pooling": 3},
        {"index_sets": "tangent", "oversampling": 2.0, "draws": 1},
        {"index_sets": "picked_values", "tabular_features": 0},
        {"index_sets": "random_voxels"},
    ],
    ids=lambda s: "-".join(map(str, s.values())) or "default",
)
def test_torchscript_is_the_network(settings: dict[str, Any], tmp_path: Path) -> None:
    """Both inputs, several visits a scan, all unfoldings, grids that are no powers of two, other batch sizes."""
    network = fitted(**settings)
    shape, channels = network.grid.shape, network.encoder.in_channels
    (path,) = export_models(network, tmp_path, forms=[])
    script = torch.jit.load(str(path))
    assert PLACE not in path.read_bytes(), "where the code was does not belong into the file"
    image = noise(3, shape, channels, seed=4)
    features = network.head.tabular_features
    tabular = torch.randn((5, features), generator=torch.Generator().manual_seed(5)) if features else None
    expected = predict(network, image, tabular)
    torch.testing.assert_close(predict(script, image, tabular), expected, rtol=0, atol=1e-5)
    patches = network.source(lazy(image)).patches(network.voxels())
    torch.testing.assert_close(predict(script, patches, tabular), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(script(image[2:]), network(image[2:]), rtol=0, atol=1e-5)
    assert float((expected - predict(network, image.flip(0), tabular)).abs().max()) > 1e-4, (
        "scans must make a difference"
    )


@pytest.mark.parametrize("index_sets", ["cohort", "tangent", "picked_values", "random_voxels"])
def test_features_agree_to_rounding(index_sets: str) -> None:
    network, image = fitted(index_sets=index_sets), images(3, seed=4)
    static = StaticCPIC(network)
    with torch.no_grad():
        found = static.features(static.encode(static.cubes(image)))
        torch.testing.assert_close(found, network.basis(network.decompose(image)), rtol=1e-9, atol=1e-9)


def test_elimination_inverts_ill_conditioned_matrices() -> None:
    rows = torch.randn((4, 10, 30), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = rows * 10.0 ** -torch.arange(10)[:, None].double().div(2)
    matrix = rows @ rows.transpose(1, 2)
    matrix = matrix + 1e-8 * torch.eye(10, dtype=torch.float64)
    assert float(torch.linalg.cond(matrix).max()) > 1e8
    expected = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    torch.testing.assert_close(invert(matrix), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_exporting_leaves_the_network_as_it_is() -> None:
    network = fitted().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.jit.script(network)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("index_sets", "why"),
    [("scan", "chosen while it is read"), ("every_voxel", "TT-SVD")],
)
def test_what_is_no_static_graph_is_refused(index_sets: str, why: str) -> None:
    network = ScriptableCPICNet(SHAPE, channels=4, features=(3,), rank=3, index_sets=index_sets).eval()
    network.basis.fit(network.decompose(images(4)))
    with pytest.raises(TypeError, match=f"cannot be exported: .*{why}.*--index_sets cohort"):
        torch.jit.script(network)


def test_oversampled_index_sets_are_refused() -> None:
    """Only where the train is truncated: larger right sets (few channels) are but more columns of the least squares."""
    network, image = ScriptableCPICNet(SHAPE, channels=8, features=(3,), rank=3).eval(), images(4)
    network.indices = CohortIndexSets(network.grid, 3, 8, oversampling=1.5)
    network.basis.fit(network.decompose(image))
    few = ScriptableCPICNet(SHAPE, channels=4, features=(3,), rank=3).eval()
    few.indices = CohortIndexSets(few.grid, 3, 4, oversampling=1.5)
    few.basis.fit(few.decompose(image))
    torch.testing.assert_close(torch.jit.script(few)(image), few(image), rtol=0, atol=1e-5)
    with pytest.raises(TypeError, match=r"index sets are larger than the rank .*oversampling 1"):
        StaticCPIC(network)


def test_an_unfitted_network_is_refused() -> None:
    with pytest.raises(ValueError, match="never fitted; load a checkpoint first"):
        StaticCPIC(ScriptableCPICNet(SHAPE, channels=4, features=(3,), rank=3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "tabular_features", "index_sets"),
    [("image", 2, "cohort"), ("image", 0, "tangent"), ("patches", 2, "cohort"), ("patches", 0, "tangent")],
)
def test_onnx_is_the_network(form: str, tabular_features: int, index_sets: str, tmp_path: Path) -> None:
    """In onnxruntime, to 1e-5, for numbers of scans and rows other than those it was exported with."""
    onnxruntime = pytest.importorskip("onnxruntime")
    network = fitted((5, 4, 8), unfolding="fused", rank=2, tabular_features=tabular_features, index_sets=index_sets)
    path = export_onnx(network, tmp_path / "model.onnx", form)
    assert PLACE not in path.read_bytes(), "where the code was does not belong into the file"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    facts = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["voxels"] == network.voxels().tolist()
    assert (facts["patch_size"], facts["spatial_shape"]) == (5, [5, 4, 8])
    for scans in (3, 1):
        image = noise(scans, (5, 4, 8), seed=4)
        tabular = torch.randn((5, tabular_features), generator=torch.Generator().manual_seed(5))
        rows = ROWS.clamp(max=scans - 1)
        with torch.no_grad():
            expected = network(image, tabular if tabular_features else None, rows)
            given = image if form == "image" else network.source(lazy(image)).patches(torch.tensor(facts["voxels"]))
        inputs = {form: given.numpy(), "scan_index": rows.numpy()}
        (found,) = session.run(["quantiles"], inputs | ({"tabular": tabular.numpy()} if tabular_features else {}))
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_onnx_of_an_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="form 'lazy' is none of image, patches"):
        export_onnx(fitted(), tmp_path / "model.onnx", "lazy")


def test_both_forms_of_checkpoint_are_read(tmp_path: Path) -> None:
    network = fitted()
    encoder = {"tabular": {"columns": [["Weeks", 0.1 + 0.2]]}, "target": {"mode": "standard", "mean": None}}
    nested = {"model": network.state_dict(), "encoder": encoder}
    torch.save(nested, tmp_path / "last.pt")
    flat = write_weights(read_checkpoint(tmp_path / "last.pt"), tmp_path / "packed")
    assert set(torch.load(flat, weights_only=True)) == set(network.state_dict())
    for path in (tmp_path / "last.pt", flat):
        found = read_checkpoint(path)
        assert found["encoder"] == encoder
        assert all(torch.equal(value, found["model"][name]) for name, value in network.state_dict().items())
    (tmp_path / "packed" / "encoder.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no encoder\.json beside it"):
        read_checkpoint(flat)
    with pytest.raises(FileNotFoundError, match="train first"):
        read_checkpoint(tmp_path / "nothing.pt")


def test_float32_algebra_is_exported(tmp_path: Path) -> None:
    network = fitted(algebra="float32")
    export_models(network, tmp_path, forms=())
    found = torch.jit.load(str(tmp_path / "model.ts"))(noise(3), None, ROWS)
    torch.testing.assert_close(found, predict(network, noise(3), None), rtol=1e-3, atol=1e-4)


def test_scales_are_exported_for_patches_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = fitted()
    network.scales = (2,)
    assert [file.name for file in export_models(network, tmp_path, forms=("image",))] == ["model.ts"]
    assert "no model_image.onnx: `scales` [2]" in caplog.text
    model = torch.jit.load(str(tmp_path / "model.ts"))
    with pytest.raises(torch.jit.Error, match="the model sees several scales"):
        model(noise(3), None, ROWS)
    patches = torch.rand(3, len(network.voxels()), 1, *(network.patch_size,) * 3)
    torch.testing.assert_close(model(patches, None, ROWS), predict(network, patches, None), rtol=1e-3, atol=1e-4)


def test_a_tensor_regression_layer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"only the canonical basis is supported .* tensor regression layer"):
        StaticCPIC(CPICNet(SHAPE, channels=4, features=(3,), rank=3, projection="trl"))

"""The MLflow model: what it answers is what the network predicts, also over HTTP."""

from __future__ import annotations

import functools
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from monai.transforms import Orientationd, Resized

from cpic_monai.batches import PrepareVisits, ToUnits, collate_visits
from cpic_monai.cohorts import ItemEncoder
from cpic_monai.cohorts.tabular import Column, TabularEncoder
from cpic_monai.cohorts.target import TargetScaler
from cpic_monai.networks import CPICNet
from cpic_monai.serving import ScanModel, log_model, pinned_requirements
from cpic_monai.tracking import log_results
from cpic_monai.transforms import LazyCompose, LoadVolumed, SamplePatchesd, VirtualScand

SHAPE = (8, 8, 8)
QUANTILES = (0.2, 0.5, 0.8)


def write_scan(path: Path, seed: int) -> str:
    image = np.random.default_rng(seed).uniform(0.2, 1.0, (12, 10, 8)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, np.diag([2.0, 2, 3, 1])), path)
    return str(path)


def fitted_encoder() -> ItemEncoder:
    """Weeks, and a category; the target is relative to the first value."""
    item = {
        "covariates": {"Weeks": [0.0, 26.0], "Sex": ["Male", "Female"]}, "target": np.array([2000.0, 1900.0]),
        "visit": [0.0, 26.0], "baseline": 2000.0, "subject": "A",
    }  # fmt: skip
    encoder = ItemEncoder()
    encoder.tabular = TabularEncoder([Column("Weeks", "scaled", 52.0), Column("Sex", "categorical")]).fit([item])
    encoder.target = TargetScaler("relative_to_first", 0.1).fit([item])
    return encoder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Network, preprocessing and encoder of a run, three scans, and the checkpoint."""
    folder = tmp_path_factory.mktemp("serving")
    torch.manual_seed(0)
    network = CPICNet(SHAPE, channels=4, features=(3,), rank=3, tabular_features=3, seed=1).eval()
    transforms = [
        LoadVolumed("image"), Orientationd("image", axcodes="RAS", labels=None), Resized("image", spatial_size=SHAPE),
        VirtualScand("image"), SamplePatchesd("image", indices=network.indices, patch_size=network.patch_size),
    ]  # fmt: skip
    preprocessing = LazyCompose(transforms)
    scans = [write_scan(folder / f"S{k}.nii.gz", k) for k in range(3)]
    trains = [preprocessing({"image": scan, "subject": scan})["image"] for scan in scans]
    network.train()
    network.moving_basis = True
    with torch.no_grad():
        network(torch.stack(trains), torch.zeros(3, 3))
    network.eval()
    encoder = fitted_encoder()
    checkpoint = folder / "model.pt"
    torch.save({"model": network.state_dict(), "encoder": encoder.state_dict()}, checkpoint)
    return {
        "network": network, "preprocessing": preprocessing, "encoder": encoder, "scans": scans,
        "checkpoint": checkpoint, "folder": folder,
    }  # fmt: skip


def request_of(parts: dict[str, Any]) -> pd.DataFrame:
    """Rows of three scans in mixed order."""
    a, b, c = parts["scans"]
    rows = [(a, 0.0, "Male", 2000.0), (b, 10.0, "Female", 3000.0), (a, 52.0, "Male", 2000.0), (c, 5.0, "?", 2500.0)]
    return pd.DataFrame(rows, columns=["image", "Weeks", "Sex", "FVC"])


def direct(parts: dict[str, Any], frame: pd.DataFrame) -> np.ndarray:
    """Quantiles as an evaluation predicts them: row by row, without the model under test."""
    rows = []
    for row in frame.to_dict("records"):
        item = {
            "subject": row["image"], "group": "", "image": row["image"], "strata": {}, "baseline": row["FVC"],
            "covariates": {"Weeks": [row["Weeks"]], "Sex": [row["Sex"]]}, "target": np.array([np.nan]),
            "visit": [row["Weeks"]],
        }  # fmt: skip
        batch = collate_visits([parts["preprocessing"](i) for i in parts["encoder"].apply([item])])
        image, _, args, kwargs = PrepareVisits()(batch)
        with torch.no_grad():
            rows.append(ToUnits()({**batch, "pred": parts["network"](image, *args, **kwargs)})["pred"][0].numpy())
    return np.array(rows)


def scan_model(parts: dict[str, Any], **given: Any) -> ScanModel:
    return ScanModel(parts["network"], parts["preprocessing"], parts["encoder"], QUANTILES, "FVC", **given)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_rows_are_answered_in_their_order(parts: dict[str, Any], batch_size: int) -> None:
    frame = request_of(parts)
    frame.index = [7, 3, 3, 9]
    answer = scan_model(parts, batch_size=batch_size).predict(None, frame)
    assert list(answer.columns) == ["q0.2", "q0.5", "q0.8"]
    assert list(answer.index) == [7, 3, 3, 9]
    expected = direct(parts, frame)
    np.testing.assert_allclose(answer.to_numpy(), expected, rtol=1e-5)
    assert len(np.unique(expected[:, 1])) == 4, "the rows differ, or their order would not be tested"


def test_a_scan_that_changed_under_its_name_is_read_again(parts: dict[str, Any], tmp_path: Path) -> None:
    model, path = scan_model(parts), tmp_path / "scan.nii.gz"
    frame = request_of(parts).iloc[:1].assign(image=write_scan(path, 50))
    before = model.predict(None, frame)["q0.5"][0]
    write_scan(path, 51)
    after = model.predict(None, frame)["q0.5"][0]
    assert after != before
    assert after == pytest.approx(direct({**parts, "preprocessing": model.preprocessing}, frame)[0, 1], rel=1e-5)


def test_a_url_is_fetched(parts: dict[str, Any]) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(parts["folder"]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            frame = request_of(parts).iloc[1:2]
            url = f"http://127.0.0.1:{server.server_port}/S1.nii.gz"
            answer = scan_model(parts).predict(None, frame.assign(image=url))
        finally:
            server.shutdown()
    np.testing.assert_allclose(answer.to_numpy(), direct(parts, frame), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"FVC": None}, r"row 0: FVC is .*, but must be its first measured, positive value"),
        ({"FVC": -1.0}, "row 0: FVC is"),
        ({"image": ""}, "row 0: image must be a path or URL, found ''"),
        ({"image": "nowhere.nii.gz"}, "nowhere.nii.gz"),
        ({"Weeks": None}, "'Weeks' is missing"),
    ],
)
def test_what_cannot_be_answered_is_refused(parts: dict[str, Any], change: dict[str, Any], message: str) -> None:
    frame = request_of(parts).assign(**{name: [value] * 4 for name, value in change.items()})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        scan_model(parts).predict(None, frame)
    with pytest.raises(ValueError, match=r"lacks the columns \['Weeks', 'FVC'\]"):
        scan_model(parts).predict(None, frame[["image"]])


def test_several_channels_are_a_list(parts: dict[str, Any]) -> None:
    model = scan_model(parts, channels=2)
    with pytest.raises(ValueError, match="must be a list of 2 paths or URLs"):
        model.predict(None, request_of(parts))
    assert "Array(string)" in str(model.signature().inputs)


def test_requirements_are_pinned_without_local_versions() -> None:
    pins = dict(pin.split("==") for pin in pinned_requirements())
    assert pins["torch"] == torch.__version__.partition("+")[0]
    assert {"monai", "mlflow", "nibabel", "cloudpickle"} <= set(pins)


@pytest.fixture(scope="module")
def logged(parts: dict[str, Any]) -> SimpleNamespace:
    """The model in a run's database. The network has moved on since: the checkpoint is what counts."""
    store = parts["folder"] / "mlruns.db"
    client = mlflow.MlflowClient(f"sqlite:///{store}")
    experiment = client.create_experiment("cpic", artifact_location=(parts["folder"] / "mlruns").as_uri())
    run = client.create_run(experiment)
    tracker = SimpleNamespace(client=client, cur_run=run, close=lambda: client.set_terminated(run.info.run_id))
    state = {name: value.clone() for name, value in parts["network"].state_dict().items()}
    with torch.no_grad():
        for parameter in parts["network"].head.parameters():
            parameter += 1.0
    common = {"preprocessing": parts["preprocessing"], "encoder": parts["encoder"], "checkpoint": parts["checkpoint"]}
    before = mlflow.get_tracking_uri()
    info = log_model(
        tracker, network=parts["network"], **common, quantiles=QUANTILES, target_name="FVC", settings={"seed": 1}
    )  # type: ignore[arg-type]
    assert mlflow.get_tracking_uri() == before
    parts["network"].load_state_dict(state)
    (parts["folder"] / "eval").mkdir()
    (parts["folder"] / "eval" / "report.html").write_text("page")
    log_results(tracker, {"test": {"mlll": -6.5}}, parts["folder"] / "eval")  # type: ignore[arg-type]
    assert info is not None
    return SimpleNamespace(info=info, client=client, run=run.info.run_id)


def test_the_run_holds_model_checkpoint_and_metrics(logged: SimpleNamespace, parts: dict[str, Any]) -> None:
    run = logged.client.get_run(logged.run)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_mlll"] == -6.5
    assert [file.path for file in logged.client.list_artifacts(logged.run, "models")] == ["models/model.pt"]
    assert [file.path for file in logged.client.list_artifacts(logged.run, "eval")] == ["eval/report.html"]
    folder = Path(logged.info.artifact_path.removeprefix("file://"))
    assert json.loads((folder / "artifacts" / "settings.json").read_text()) == {"seed": 1}
    assert (folder / "code" / "cpic_monai" / "serving.py").is_file()
    assert f"monai=={pinned_requirements()[0].split('==')[1]}" in (folder / "requirements.txt").read_text()
    names = [column.name for column in logged.info.signature.inputs]
    assert names == ["image", "Weeks", "Sex", "FVC"]


def test_nothing_is_logged_without_a_tracker(parts: dict[str, Any]) -> None:
    common = {"network": parts["network"], "preprocessing": None, "encoder": parts["encoder"]}
    given = {**common, "checkpoint": "none.pt", "quantiles": QUANTILES, "target_name": "FVC"}
    assert log_model(None, **given) is None
    with pytest.raises(RuntimeError, match="has no run"):
        log_model(SimpleNamespace(cur_run=None), **given)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"none\.pt does not exist"):
        log_model(SimpleNamespace(cur_run=1), **given)  # type: ignore[arg-type]


@pytest.mark.slow
def test_mlflow_models_serve_answers(logged: SimpleNamespace, parts: dict[str, Any], tmp_path: Path) -> None:
    """A real server in a process of its own, asked once over loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = logged.info.artifact_path.removeprefix("file://")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", folder, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = tmp_path / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server, log)
        frame = request_of(parts)
        body = json.dumps({"dataframe_split": frame.to_dict("split", index=False)}).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=60) as reply:
            answer = pd.DataFrame(json.load(reply)["predictions"])
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)
    np.testing.assert_allclose(answer[["q0.2", "q0.5", "q0.8"]].to_numpy(), direct(parts, frame), rtol=1e-5)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 180) -> None:
    """Return once the server answers; fail with its log if it ends or never does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"the server did not come up:\n{log.read_text()[-3000:]}")

"""
The trained model as an MLflow model, so that ``mlflow models serve`` answers with quantiles.

A request is a table: a row a visit, with the column ``image`` (path or URL of a scan), the tabular columns of training,
and, where the target is relative to its first value (OSIC), that value under the target's name. Rows of one scan share
one reading of it. The answer is a table of quantiles in the target's unit, in the rows' order::

    mlflow models serve -m runs:/RUN_ID/model --env-manager local --host 127.0.0.1 --port 5001
    curl -H "Content-Type: application/json" -d '{"dataframe_records":
        [{"image": "/scans/ID1", "Weeks": 26, "FVC": 2700}]}' http://127.0.0.1:5001/invocations

A server opens whatever path or URL it is given: let only trusted clients reach it.

The preprocessing and the network travel as the objects that the run's configuration made, overlays and options of its
command line included, hence nothing has to be repeated when serving. Weights and tabular encoding come from the
checkpoint, an artifact of the model beside ``settings.json``.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.pyfunc import PythonModel
from mlflow.types.schema import Array, ColSpec, DataType, Schema, TensorSpec
from monai.apps.utils import download_url
from monai.handlers import MLFlowHandler
from packaging.requirements import Requirement

import cpic_monai
from cpic_monai.batches import PrepareVisits, ToUnits, collate_visits
from cpic_monai.cohorts import ItemEncoder
from cpic_monai.cohorts.finding import SUFFIXES
from cpic_monai.inferers import QuantileInferer
from cpic_monai.networks import CPICNet
from cpic_monai.report.provenance import PACKAGES

__all__ = ["ScanModel", "log_model", "pinned_requirements"]

IMAGE = "image"


class ScanModel(PythonModel):
    """Scans and tabular values in, quantiles out.

    Parameters
    ----------
    network
        Its weights are those of the artifact ``checkpoint`` once the model is loaded.
    preprocessing
        From an item with a path under ``image`` to what the network takes.
    encoder
        Tabular encoding and target scale; likewise from the checkpoint.
    quantiles
        Levels of the network's columns.
    target_name
        Name of the outcome; the column of its first value, where it is relative to that.
    channels
        Files a scan consists of: with more than one, ``image`` holds a list of as many.
    batch_size
        Most scans that the network is given at a time.
    """

    def __init__(
        self,
        network: CPICNet,
        preprocessing: Callable[[dict[str, Any]], dict[str, Any]],
        encoder: ItemEncoder,
        quantiles: Sequence[float],
        target_name: str,
        channels: int = 1,
        batch_size: int = 8,
    ) -> None:
        # Together: the preprocessing holds the network's index sets. A copy, for training may go on.
        self.network, self.preprocessing = copy.deepcopy((network, preprocessing))
        self.network.cpu().eval()
        self.encoder, self.quantiles = copy.deepcopy(encoder), tuple(float(level) for level in quantiles)
        self.target_name, self.channels, self.batch_size = target_name, int(channels), int(batch_size)
        self._lock: Any = None

    @property
    def relative(self) -> bool:
        """Whether predictions are relative to a first value, which then has to be known."""
        return self.encoder.target.mode == "relative_to_first"

    def signature(self) -> ModelSignature:
        """Columns that go in and come out. A numeric or categorical column may be missing, as in training."""
        text, number = DataType.string, DataType.double
        columns: list[ColSpec | TensorSpec] = [ColSpec(Array(text) if self.channels > 1 else text, IMAGE)]
        for column in self.encoder.tabular.columns:
            kind = text if column.kind == "categorical" else number
            columns.append(ColSpec(kind, column.name, required=column.kind == "scaled"))
        if self.relative and self.target_name not in {column.name for column in columns}:
            columns.append(ColSpec(number, self.target_name))
        return ModelSignature(Schema(columns), Schema([ColSpec(number, name) for name in self._outputs()]))

    def load_context(self, context: Any) -> None:
        """Take weights and encoding from the checkpoint, and the accelerator if there is one."""
        state = torch.load(context.artifacts["checkpoint"], map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["model"])
        self.encoder.load_state_dict(state["encoder"])
        self.network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._lock = threading.Lock()

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Quantiles of every row, in the target's unit.

        Parameters
        ----------
        context
            Of MLflow; None for a model that was not loaded by it.
        model_input
            See the module.
        params
            Not used.

        Returns
        -------
        DataFrame
            Float64 columns such as ``q0.2``, ``q0.5``, ``q0.8``, with the index of ``model_input``.

        Raises
        ------
        ValueError
            If a column is missing, or a row lacks its image or the first value that it is relative to.
        FileNotFoundError, VolumeError
            If a scan cannot be opened.
        """
        frame = model_input.reset_index(drop=True)
        result = pd.DataFrame(index=frame.index, columns=list(self._outputs()), dtype=np.float64)
        with self._lock or threading.Lock(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
            items = self._items(frame, Path(folder))
            # Caches by path must not outlive a request: a file may have changed by the next one.
            preprocessing = copy.deepcopy(self.preprocessing)
            device = next(self.network.buffers(), torch.zeros(0)).device
            for start in range(0, len(items), self.batch_size):
                part = items[start : start + self.batch_size]
                batch = collate_visits([preprocessing(item) for item in self.encoder.apply(part)])
                image, _, args, kwargs = PrepareVisits()(batch, device)
                pred = QuantileInferer()(image, self.network, *args, **kwargs)
                values = ToUnits()({**batch, "pred": pred, "label": None})["pred"]
                result.loc[[row for item in part for row in item["rows"]]] = values.double().cpu().numpy()
        result.index = model_input.index
        return result

    def _outputs(self) -> tuple[str, ...]:
        return tuple(f"q{level:g}" for level in self.quantiles)

    def _items(self, frame: pd.DataFrame, folder: Path) -> list[dict[str, Any]]:
        """One item a scan and first value, with the ``rows`` that it answers."""
        columns = self.encoder.tabular.columns
        needed = [IMAGE, *(c.name for c in columns if c.kind == "scaled"), *([self.target_name] * self.relative)]
        missing = [name for name in dict.fromkeys(needed) if name not in frame.columns]
        if missing:
            raise ValueError(f"the request lacks the columns {missing}; it has {[str(name) for name in frame.columns]}")
        groups: dict[tuple[tuple[str, ...], float], list[int]] = {}
        for row in range(len(frame)):
            first = self._first(frame, row)
            groups.setdefault((self._paths(frame[IMAGE][row], row), first), []).append(row)
        local = {path: _fetched(path, folder) for paths, _ in groups for path in paths}
        items = []
        for (paths, first), rows in groups.items():
            values = {c.name: frame[c.name][rows].tolist() if c.name in frame else [None] * len(rows) for c in columns}
            opened = [local[path] for path in paths]
            items.append(
                {
                    "subject": ", ".join(paths),
                    "group": paths[0],
                    "image": opened[0] if len(opened) == 1 else opened,
                    "strata": {},
                    "covariates": values,
                    "target": np.full(len(rows), math.nan),
                    "baseline": first,
                    "visit": np.full(len(rows), math.nan),
                    "rows": rows,
                }
            )
        return items

    def _first(self, frame: pd.DataFrame, row: int) -> float:
        if not self.relative:
            return 1.0
        value = float(pd.to_numeric(frame[self.target_name][row], errors="coerce"))
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(
                f"row {row}: {self.target_name} is {frame[self.target_name][row]!r}, but must be its first measured, "
                "positive value, which the predictions are relative to"
            )
        return value

    def _paths(self, cell: Any, row: int) -> tuple[str, ...]:
        paths = (cell,) if isinstance(cell, str) else tuple(cell) if isinstance(cell, list | tuple | np.ndarray) else ()
        if len(paths) != self.channels or not all(isinstance(path, str) and path.strip() for path in paths):
            wanted = "a path or URL" if self.channels == 1 else f"a list of {self.channels} paths or URLs"
            raise ValueError(f"row {row}: {IMAGE} must be {wanted}, found {cell!r}")
        return tuple(path.strip() for path in paths)


def _fetched(path: str, folder: Path) -> str:
    """A local path: single files behind http(s) are downloaded into ``folder``, chunked stores read where they are."""
    name = PurePosixPath(urlparse(path).path).name
    if not path.lower().startswith(("http://", "https://")) or not name.lower().endswith(SUFFIXES):
        return path
    target = folder / str(len(list(folder.iterdir()))) / name
    target.parent.mkdir()
    download_url(path, target, progress=False)
    return str(target)


def pinned_requirements() -> list[str]:
    """``name==version`` of what this package depends on, as installed."""
    try:
        wanted = [Requirement(text) for text in metadata.requires("cpic-monai") or ()]
        names = [requirement.name for requirement in wanted if not requirement.marker]
    except metadata.PackageNotFoundError:  # a packed bundle carries the package without installing it
        names = [name for name in PACKAGES if name != "cpic-monai"]
    # Without a local part such as +cpu, which no index knows.
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in [*names, "cloudpickle"]]


def log_model(
    tracker: MLFlowHandler | None,
    *,
    network: CPICNet,
    preprocessing: Callable[[dict[str, Any]], dict[str, Any]],
    encoder: ItemEncoder,
    checkpoint: str | Path,
    quantiles: Sequence[float],
    target_name: str,
    channels: int = 1,
    settings: Mapping[str, Any] | None = None,
    name: str = "model",
) -> ModelInfo | None:
    """Log the model, and the checkpoint, to the trainer's MLflow run; before :func:`cpic_monai.tracking.log_results`.

    Parameters
    ----------
    tracker
        After the trainer has run; None in a process that does not track, where nothing is logged.
    network, preprocessing, encoder, quantiles, target_name, channels
        See :class:`ScanModel`.
    checkpoint
        With ``model`` and ``encoder``, as training saves it.
    settings
        Of the run, to be read by people: :func:`cpic_monai.report.collect_provenance`.
    name
        The model is at ``runs:/<run>/<name>``.

    Returns
    -------
    ModelInfo
        None without a tracker.

    Raises
    ------
    RuntimeError
        If the tracker has no run.
    FileNotFoundError
        If there is no checkpoint.
    """
    if tracker is None:
        return None
    if tracker.cur_run is None:
        raise RuntimeError("the MLflow handler has no run: attach it to the trainer and train first")
    checkpoint = Path(checkpoint)
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint} does not exist: train first, or give `ckpt_path`")
    model = ScanModel(network, preprocessing, encoder, quantiles, target_name, channels)
    run_id = tracker.cur_run.info.run_id
    # None unsets it again: setting it also sets MLFLOW_TRACKING_URI, which would take precedence in the next run.
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(tracker.client.tracking_uri)
    try:
        with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_id=run_id, nested=True):
            path = Path(folder, "settings.json")
            path.write_text(json.dumps(dict(settings or {}), indent=2, default=str) + "\n", encoding="utf-8")
            tracker.client.log_artifact(run_id, str(checkpoint), artifact_path="models")
            return mlflow.pyfunc.log_model(
                name=name,
                python_model=model,
                artifacts={"checkpoint": str(checkpoint), "settings": str(path)},
                code_paths=[str(Path(cpic_monai.__file__).parent)],
                pip_requirements=pinned_requirements(),
                signature=model.signature(),
            )
    finally:
        mlflow.set_tracking_uri(before)

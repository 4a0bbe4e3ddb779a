"""A cross-validation in MLflow: one parent run, a child a fold."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from monai.handlers import MLFlowHandler

from cpic_monai.atomic import write_text_atomically

__all__ = ["ParentRun"]

logger = logging.getLogger(__name__)


class ParentRun:
    """
    The parent run, made at first use and found again when the cross-validation goes on.

    A child is made with its parent's tag before its fold starts, and the fold's own ``MLFlowHandler`` goes on with it:
    it takes the unfinished run of its name, where there is one.

    Parameters
    ----------
    tracking_uri, experiment_name, run_name : str
        As in the training configuration; the environment variable MLFLOW_TRACKING_URI takes precedence there and here.
    folder : path
        Where ``mlflow.json`` remembers the run's id.
    parameters : mapping
        Logged to the parent run when it is made.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment_name: str,
        run_name: str,
        folder: str | Path,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        handler = MLFlowHandler(tracking_uri=tracking_uri, experiment_name=experiment_name)
        self.client, self.tracking_uri, self.experiment_name = handler.client, tracking_uri, experiment_name
        experiment = self.client.get_experiment_by_name(experiment_name)
        self.experiment_id = (
            experiment.experiment_id
            if experiment is not None
            else self.client.create_experiment(experiment_name, artifact_location=handler.artifact_location)
        )
        path = Path(folder) / "mlflow.json"
        used = os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.run_id = str(known["run_id"]) if known.get("tracking_uri") == used and self._is_there(known) else ""
        if self.run_id:
            self.client.update_run(self.run_id, status="RUNNING")
            return
        self.run_id = self.client.create_run(self.experiment_id, run_name=run_name).info.run_id
        for name, value in (parameters or {}).items():
            self.client.log_param(self.run_id, name, value)
        write_text_atomically(path, json.dumps({"tracking_uri": used, "run_id": self.run_id}, indent=2) + "\n")

    def _is_there(self, known: Mapping[str, str]) -> bool:
        try:
            return bool(self.client.get_run(known["run_id"]).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            logger.warning(f"MLflow run {known['run_id']} is gone from its database; a new parent run is made")
            return False

    def child(self, name: str) -> tuple[str, dict[str, str]]:
        """
        Make a child run.

        Returns
        -------
        tuple
            Its id, and the settings that make a training run log to it.
        """
        run_name = f"{name}, {time.strftime('%Y-%m-%d %H:%M:%S')}"  # a fold begun anew is another run
        run = self.client.create_run(self.experiment_id, tags={MLFLOW_PARENT_RUN_ID: self.run_id}, run_name=run_name)
        names = {"tracking_uri": self.tracking_uri, "experiment_name": self.experiment_name, "run_name": run_name}
        return run.info.run_id, names

    def end(self, run_id: str, status: str) -> None:
        """End a run, ``FINISHED``, ``FAILED`` or ``KILLED``, unless it has ended by itself."""
        if self.client.get_run(run_id).info.status == "RUNNING":
            self.client.set_terminated(run_id, status)

    def finish(self, result: Mapping[str, Any], files: list[Path]) -> None:
        """Log mean, SD and pooled value of every method's metrics and the result's files, and end the parent run."""
        for method, entry in result["methods"].items():
            for kind in ("mean", "sd", "pooled"):
                for name, value in entry.get(kind, {}).items():
                    if isinstance(value, int | float) and value == value:
                        self.client.log_metric(self.run_id, f"{method}_{name}_{kind}", float(value))
        for file in files:
            self.client.log_artifact(self.run_id, str(file))
        self.end(self.run_id, "FINISHED")

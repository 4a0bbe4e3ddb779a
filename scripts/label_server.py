"""A MONAI Label server in a process of its own, and requests to it; for scripts/check_monai_label.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from email.message import Message
from pathlib import Path
from types import TracebackType
from typing import Any

import requests
from requests_toolbelt.multipart import decoder

START, ANSWER, TRAIN = 600.0, 600.0, 1800.0  # seconds: machines of continuous integration are slow


class Server:
    """Runs while its ``with`` block does, on a free port of 127.0.0.1.

    Parameters
    ----------
    app, studies
        Folders of the app and of the datastore.
    conf
        ``--conf`` pairs.
    work
        Where the server runs and logs.
    importable
        Folder that Python finds modules in: the bundle's, which carries the package.
    options
        More of ``monailabel start_server``'s options.
    """

    def __init__(
        self,
        app: Path,
        studies: Path,
        conf: dict[str, str],
        work: Path,
        importable: Path,
        options: Sequence[str] = (),
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", work / f"server_{port}.log"
        command = [
            sys.executable,
            "-m",
            "monailabel.main",
            "start_server",
            "--app",
            str(app),
            "--studies",
            str(studies),
        ]
        command += ["--host", "127.0.0.1", "--port", str(port), *options]
        for key, value in conf.items():
            command += ["--conf", key, value]
        environment = os.environ | {
            "MONAI_LABEL_SESSION_PATH": str(work / "sessions"),
            "PYTHONPATH": str(importable),
        }
        self._command, self._environment, self._work = command, environment, work

    def __enter__(self) -> Server:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, cwd=self._work, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if kind is not None:
            print("\n".join(self.log.read_text(errors="replace").splitlines()[-40:]), file=sys.stderr)

    def _wait(self) -> None:
        """Until the server answers."""
        end = time.time() + START
        while time.time() < end:
            if self._process.poll() is not None:
                self._fail(f"the server ended with {self._process.returncode} while starting")
            try:
                requests.get(f"{self.url}/info/", timeout=ANSWER).raise_for_status()
                return
            except requests.ConnectionError:
                time.sleep(1.0)
        self._fail("the server did not start in time")

    def stop(self) -> None:
        """End the server and what it started."""
        for name in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                os.killpg(self._process.pid, name)
                try:
                    self._process.wait(30)
                except subprocess.TimeoutExpired:
                    continue

    def json(self, method: str, path: str, **more: Any) -> Any:
        """A request whose answer is JSON."""
        answer = requests.request(method, self.url + path, timeout=ANSWER, **more)
        if answer.status_code != 200:
            self._fail(f"{method} {path}: HTTP {answer.status_code} {answer.text[:500]}")
        return answer.json()

    def infer(self, model: str, image: str, params: dict[str, Any], output: str) -> Any:
        """``POST /infer``; the JSON of the result."""
        return self.json("POST", f"/infer/{model}", params={"image": image, "output": output}, data=_form(params))

    def infer_all(self, model: str, image: str, params: dict[str, Any], path: Path) -> tuple[dict[str, Any], Path]:
        """JSON and label map, which is saved under ``path``."""
        query = {"image": image, "output": "all"}
        answer = requests.post(f"{self.url}/infer/{model}", params=query, data=_form(params), timeout=ANSWER)
        if answer.status_code != 200:
            self._fail(f"POST /infer/{model}: HTTP {answer.status_code} {answer.text[:500]}")
        result, found = None, False
        for part in decoder.MultipartDecoder.from_response(answer).parts:
            header = Message()
            header["content-disposition"] = part.headers[b"Content-Disposition"].decode()
            name = header.get_param("name", header="content-disposition")
            if name == "params":
                result = json.loads(part.content)
            elif name == "image":
                path.write_bytes(part.content)
                found = True
        if result is None or not found:
            self._fail(f"POST /infer/{model}: the answer lacks the JSON or the label map")
        return result or {}, path

    def refused(self, model: str, image: str, params: dict[str, Any]) -> tuple[int, str]:
        """Status and message of a request that should not work."""
        query = {"image": image, "output": "json"}
        answer = requests.post(f"{self.url}/infer/{model}", params=query, data=_form(params), timeout=ANSWER)
        return answer.status_code, answer.text

    def submit(self, image: str, outcome: dict[str, Any]) -> tuple[int, str]:
        """Submit an outcome as the final label of a scan."""
        file = {"label": ("outcome.json", json.dumps(outcome), "application/json")}
        query = {"image": image, "tag": "final"}
        answer = requests.put(f"{self.url}/datastore/label", params=query, files=file, timeout=ANSWER)
        return answer.status_code, answer.text

    def train(self, model: str, params: dict[str, Any]) -> dict[str, Any]:
        """Start training, and wait for its end."""
        self.json("POST", f"/train/{model}", json=params)
        end = time.time() + TRAIN
        while time.time() < end:
            task = self.json("GET", "/train/")
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return task
            time.sleep(1.0)
        self._fail("training did not end in time")
        return {}

    def _fail(self, what: str) -> None:
        raise SystemExit(f"FAILED: {what}; see the log:\n" + self.log.read_text(errors="replace")[-4000:])


def _form(params: dict[str, Any]) -> dict[str, str]:
    return {"params": json.dumps(params)}

"""Take the pictures of the documentation: a run's report on a desktop and on a phone, and its page in MLflow.

Give the output folder of a training (it holds eval/ and mlruns.db). MLflow's page is served on loopback while the
picture is taken. Pictures are PNG, fewer colours being used until each is smaller than the limit.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from PIL import Image
from tqdm import tqdm

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: Name, section of the report (id of its heading; none: from the top), width and height in CSS pixels.
REPORT = (
    ("report.png", "", (1200, 1650)),
    ("report_cases.png", "worst", (1200, 1700)),
    ("report_subgroups.png", "subgroups", (1200, 900)),
    ("report_phone.png", "", (390, 1500)),
)
COMPARISON = (1000, 1350)
RUN = (1400, 1250)
#: MLflow opens a panel at the right of a first visit, as wide as this share of the rest.
PANEL = 0.35
#: Chromium lays a window narrower than this out as if it were as wide.
NARROWEST = 500


def _browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise FileNotFoundError(f"no browser found; install one of {', '.join(BROWSERS)}")
    return found


def photograph(
    browser: str, address: str, size: tuple[int, int], *, beside: int = 0, seconds: float = 0.0
) -> Image.Image:
    """The top of a page in a headless browser.

    Parameters
    ----------
    browser
        Executable.
    address
        Of the page.
    size
        Width and height of the picture in CSS pixels. Narrower pages than a window can be are shown in a frame.
    beside
        Further pixels of the page at the right that are not in the picture.
    seconds
        Time that the page's scripts get, in the browser's own clock.

    Raises
    ------
    RuntimeError
        If the browser takes no picture.
    """
    with tempfile.TemporaryDirectory() as folder:
        picture, window = Path(folder, "picture.png"), (size[0] + beside, size[1])
        if size[0] < NARROWEST:
            frame = Path(folder, "frame.html")
            style = f"margin:0;border:0;display:block;width:{size[0]}px;height:{size[1]}px"
            frame.write_text(f'<body style="margin:0"><iframe src="{address}" style="{style}" scrolling="no"></iframe>')
            address, window = frame.as_uri(), (NARROWEST, size[1])
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        command += [f"--user-data-dir={folder}/profile", f"--window-size={window[0]},{window[1]}"]
        command += [f"--virtual-time-budget={int(1000 * seconds)}"] if seconds else []
        command += [f"--screenshot={picture}", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if not picture.is_file():
            raise RuntimeError(f"{browser} took no picture of {address}:\n{done.stderr[-2000:]}")
        with Image.open(picture) as image:
            return image.convert("RGB").crop((0, 0, *size))


@contextmanager
def only_section(page: Path, part: str) -> Iterator[str]:
    """Address of a report, or of a copy in which one section alone is shown.

    Raises
    ------
    ValueError
        If the report has no such section.
    """
    if not part:
        yield page.resolve().as_uri()
        return
    text = page.read_text(encoding="utf-8")
    if f'aria-labelledby="{part}"' not in text:
        raise ValueError(f"{page} has no section {part!r}; was it evaluated on a cohort with truths and strata?")
    style = f'header, footer, section:not([aria-labelledby="{part}"]) {{ display: none; }} h2 {{ margin-top: 18px; }}'
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "report.html")
        copy.write_text(text.replace("</head>", f"<style>{style}</style></head>", 1), encoding="utf-8")
        yield copy.as_uri()


def save(image: Image.Image, path: Path, most_bytes: int) -> Path:
    """Write a PNG of at most so many bytes, under a temporary name first.

    Raises
    ------
    ValueError
        If even 16 colours take more.
    """
    for colours in (0, 256, 128, 64, 32, 16):
        buffer = io.BytesIO()
        reduced = image.quantize(colours, dither=Image.Dither.NONE) if colours else image
        reduced.save(buffer, "PNG", optimize=True)
        if buffer.tell() <= most_bytes:
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(buffer.getvalue())
            temporary.replace(path)
            return path
    raise ValueError(f"{path.name} takes {buffer.tell()} bytes in 16 colours; the limit is {most_bytes}: cut its size")


@contextmanager
def mlflow_ui(store: str) -> Iterator[str]:
    """MLflow's pages of a database, on a free port of loopback; stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("w") as stream:
            server = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "PATH": path},
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        try:
            _wait(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:  # it waits for the browser's last connections
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _wait(address: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"MLflow did not come up:\n{log.read_text()[-2000:]}")


def _latest_run(store: str) -> tuple[str, str]:
    """Experiment and run of the last finished training."""
    client = mlflow.MlflowClient(store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)
    if not runs:
        raise ValueError(f"{store} holds no run; train first")
    return runs[0].info.experiment_id, runs[0].info.run_id


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of a training: eval/report.html and mlruns.db")
    parser.add_argument("--output", type=Path, default=Path("bundle/docs"), help="folder of the pictures")
    parser.add_argument("--comparison", type=Path, help="a comparison.html to take as well")
    parser.add_argument("--most_kilobytes", type=int, default=400, help="largest size of a picture")
    parser.add_argument("--skip_mlflow", action="store_true", help="the report alone")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    given = _parser().parse_args(arguments)
    browser, most = _browser(), 1000 * given.most_kilobytes
    page, store = given.run / "eval" / "report.html", given.run / "mlruns.db"
    needed = [page, *([] if given.skip_mlflow else [store]), *([given.comparison] if given.comparison else [])]
    missing = [str(path) for path in needed if not path.is_file()]
    if missing:
        print(f"screenshot: {', '.join(missing)} missing; give the output folder of a training", file=sys.stderr)
        return 1
    given.output.mkdir(parents=True, exist_ok=True)
    shots: list[tuple[str, Path, str, tuple[int, int]]] = [(name, page, part, size) for name, part, size in REPORT]
    if given.comparison:
        shots.append(("comparison.png", given.comparison, "", COMPARISON))
    with tqdm(total=len(shots) + (not given.skip_mlflow), desc="pictures") as bar:
        for name, source, part, size in shots:
            with only_section(source, part) as address:
                save(photograph(browser, address, size), given.output / name, most)
            bar.update()
        if not given.skip_mlflow:
            database = f"sqlite:///{store.resolve()}"
            experiment, run = _latest_run(database)
            with mlflow_ui(database) as host:
                address = f"{host}/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"
                picture = photograph(browser, address, RUN, beside=int(PANEL * RUN[0]), seconds=60)
                save(picture, given.output / "mlflow_run.png", most)
            bar.update()
    return 0


if __name__ == "__main__":
    sys.exit(main())

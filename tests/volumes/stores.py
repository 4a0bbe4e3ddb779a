"""Scans with known values for stores, and a loopback web server that counts what it sends."""

from __future__ import annotations

import functools
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

#: Oblique, anisotropic, left-handed: nothing about it is its own transpose.
AFFINE = np.array([[0.0, 0.9, 0.0, -20.0], [-0.7, 0.0, 0.5, 30.0], [0.3, 0.0, 2.0, -40.0], [0.0, 0.0, 0.0, 1.0]])


def values(shape: tuple[int, int, int], dtype: str, seed: int = 0) -> np.ndarray:
    """Random values (no two neighbours alike), so that they compress badly and sizes on disk are known."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files; unlike its parent it answers requests for a range of bytes, and counts."""

    sent: dict[str, int]
    seconds: float

    def log_message(self, format: str, *args: object) -> None:
        """Be silent."""

    def do_GET(self) -> None:
        self.sent["at_once"] += 1
        self.sent["most_at_once"] = max(self.sent["most_at_once"], self.sent["at_once"])
        time.sleep(self.seconds)
        self.sent["at_once"] -= 1
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, size = path.read_bytes(), path.stat().st_size
        first, last, code = 0, size - 1, 200
        if asked := self.headers.get("Range"):
            low, high = asked.removeprefix("bytes=").split("-")
            first = int(low) if low else size - int(high)
            last = min(int(high), size - 1) if low and high else size - 1
            code = 206
        body = data[first : last + 1]
        self.send_response(code)
        if code == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.sent["bytes"] += len(body)  # before the client can go on
        self.wfile.write(body)


@contextmanager
def served(folder: Path, plain: bool = False, seconds: float = 0) -> Iterator[tuple[str, dict[str, int]]]:
    """Serve a folder on the loopback interface, each answer after ``seconds``; gives its URL and counts of bytes sent
    and of requests at once (``plain``: Python's own server, which knows no byte ranges and is not counted)."""
    sent = {"bytes": 0, "at_once": 0, "most_at_once": 0}
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    kind = quiet if plain else type("Counting", (_Ranges,), {"sent": sent, "seconds": seconds})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

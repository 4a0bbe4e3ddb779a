"""An object store on the loopback interface: as much of S3 as tensorstore needs to write, read, list and delete."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class _Objects(http.server.BaseHTTPRequestHandler):
    """Objects by ``/bucket/key``, with path-style addresses and without signatures."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]

    def log_message(self, format: str, *args: object) -> None:
        """Be silent."""

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.path).path)

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        """Send one answer; a tag of the content stands for its version."""
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self.answer(200, self.listed(query.get("prefix", [""])[0]))
            return
        data = self.objects.get(self.name)
        if data is None:
            self.answer(404)
            return
        first, last = 0, len(data) - 1
        if asked := self.headers.get("Range"):
            low, high = asked.removeprefix("bytes=").split("-")
            first = int(low) if low else len(data) - int(high)
            last = min(int(high), len(data) - 1) if low and high else len(data) - 1
        place = {"Content_Range": f"bytes {first}-{last}/{len(data)}"} if asked else {}
        self.answer(206 if asked else 200, data[first : last + 1], ETag=_tag(data), **place)

    def do_PUT(self) -> None:
        data = self.objects[self.name] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, ETag=_tag(data))

    def do_DELETE(self) -> None:
        self.objects.pop(self.name, None)
        self.answer(204)

    def listed(self, prefix: str) -> bytes:
        start = self.name.rstrip("/") + "/"
        keys = sorted(name.removeprefix(start) for name in self.objects if name.startswith(start + prefix))
        rows = "".join(f"<Contents><Key>{escape(key)}</Key><Size>1</Size></Contents>" for key in keys)
        head = f"<KeyCount>{len(keys)}</KeyCount><IsTruncated>false</IsTruncated>"
        return f'<?xml version="1.0"?><ListBucketResult>{head}{rows}</ListBucketResult>'.encode()


def _tag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()}"'


@contextmanager
def s3() -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    """Run the store; gives the ``storage`` that leads ``s3://`` URLs to it, and what it holds by ``/bucket/key``."""
    objects: dict[str, bytes] = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Objects,), {"objects": objects}))
    server.daemon_threads = True  # clients keep their connections open
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield (
            {"endpoint": endpoint, "aws_region": "eu-central-1", "aws_credentials": {"type": "anonymous"}},
            objects,
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""An S3 with one object, for benchmarks: as fast as a disk in memory, and in a process of its own.

It knows what a download needs: GET, with `Range` or without, and `If-Match`.
"""

import http.client
import multiprocessing
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

__all__ = ["s3_of"]

_ETAG: Final = '"0123456789abcdef0123456789abcdef"'
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d+)")


@contextmanager
def s3_of(object_: Path) -> Iterator[str]:
    """The URL of an S3 that has this file under every name; another process sends it."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(object_, there), daemon=True)
    server.start()
    there.close()  # so that its end is noticed, should it come before it has said anything
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        server.kill()
        server.join()


def _serve(object_: Path, told: Connection) -> None:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.object = object_
    told.send(server.server_port)
    server.serve_forever()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    object: Path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    connection: socket.socket

    def do_GET(self) -> None:
        if self.headers.get("If-Match", _ETAG) != _ETAG:
            self._answer(http.client.PRECONDITION_FAILED, 0)
            return
        with self.server.object.open("rb") as content:
            size = self.server.object.stat().st_size
            asked = _RANGE.fullmatch(self.headers.get("Range", ""))
            if asked is None:
                self._answer(http.client.OK, size)
                self.connection.sendfile(content)
                return
            start, end = int(asked[1]), min(int(asked[2]) + 1, size)
            self._answer(http.client.PARTIAL_CONTENT, end - start, f"bytes {start}-{end - 1}/{size}")
            self.connection.sendfile(content, start, end - start)

    def _answer(self, status: int, length: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("ETag", _ETAG)
        self.send_header("Content-Length", str(length))
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass

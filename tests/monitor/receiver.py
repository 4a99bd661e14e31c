"""A real HTTP server on this machine that takes messages as well or as badly as it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """What came to it.

    Attributes:
        url: its address, with a word that must be found nowhere.
        bodies: of the messages, in the order in which they came.
    """

    SECRET = "w0rd-0f-the-hook"

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/{self.SECRET}"
        self.bodies: list[bytes] = []

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The bodies as JSON."""
        return [json.loads(body) for body in self.bodies]


@contextmanager
def receiving(way: str = "answers") -> Iterator[Receiver]:
    """A server for the block.

    Args:
        way: "answers"; "refuses" with status 500; "redirects" to itself; "closes" after half an answer; "says nothing"
            and closes; "nonsense" in place of JSON; "a code" of an error, with status 200; "hangs" until the end.
    """
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            if way == "hangs":
                over.wait()
            if way in ("hangs", "says nothing"):
                return
            self.send_response({"refuses": 500, "redirects": 307}.get(way, 200))
            if way == "redirects":
                self.send_header("Location", found.url + "/elsewhere")
            answer = {"nonsense": b"<html>", "a code": b'{"code": 19001}', "closes": b'{"co'}.get(way, b'{"code": 0}')
            self.send_header("Content-Length", "11" if way == "closes" else str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        found = Receiver(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            over.set()
            server.shutdown()
            thread.join()


def until(true: Any, seconds: float = 20.0) -> None:
    """Wait until a function says yes."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)

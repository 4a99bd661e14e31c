"""A network in front of a server that breaks when it is told to: answers are cut off, lost, or never come."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

_CONTINUE = b"HTTP/1.1 100"
"""Begins what a server says before it has the body of a request: no answer yet."""


class Proxy:
    """Passes connections on to a server.

    Attributes:
        address: host and port of this side.
        cut: after how many more bytes the answers end, with their connection; once. 0 loses a whole answer, None none.
        silent: no byte of an answer comes through any more.
        cuts: how often it was cut.
        refuses: what the first line of a request has in it that is answered by an error in place of the server.
        error: what that answer calls it.
    """

    def __init__(self, endpoint: str) -> None:
        url = urlsplit(endpoint)
        self._server = (url.hostname or "", url.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self._lock = threading.Lock()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut: int | None = None
        self.silent = False
        self.cuts = 0
        self.refuses, self.error = b"", ""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End every connection."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._open += [client, server]
                threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                ends = False
                if not answers and self.refuses and self.refuses in data.partition(b"\r\n")[0]:
                    self._refuse(source, data)
                    break
                if answers and not data.startswith(_CONTINUE):
                    if self.silent:
                        continue
                    data, ends = self._left_of(data)
                target.sendall(data)
                if ends:
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _refuse(self, client: socket.socket, data: bytes) -> None:
        """Take the request to its end, and answer it."""
        head, _, body = data.partition(b"\r\n\r\n")
        lines = dict(line.lower().split(b": ", 1) for line in head.splitlines()[1:])
        missing = int(lines.get(b"content-length", b"0")) - len(body)
        while missing > 0 and (more := client.recv(missing)):
            missing -= len(more)
        answer = f"<Error><Code>{self.error}</Code><Message>no</Message></Error>".encode()
        head = f"HTTP/1.1 400 Bad Request\r\nContent-Length: {len(answer)}\r\nConnection: close\r\n\r\n".encode()
        client.sendall(head + answer)

    def _left_of(self, data: bytes) -> tuple[bytes, bool]:
        with self._lock:
            if self.cut is None:
                return data, False
            if len(data) < self.cut:
                self.cut -= len(data)
                return data, False
            data, self.cut = data[: self.cut], None
            self.cuts += 1
            return data, True


@contextlib.contextmanager
def broken_network(endpoint: str) -> Iterator[Proxy]:
    """A proxy for the block."""
    proxy = Proxy(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()

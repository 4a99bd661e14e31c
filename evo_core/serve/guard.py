"""Who may speak to the server: hosts that requests may name, connections that may wait, headers that browsers obey."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
import json
import re
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from evo_core.serve.answers import ApiError

MAX_CONNECTIONS = 512
"""Beyond these the connection goes whose request has been awaited longest."""

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Whether a host, as an address to listen at or as a request names it, is this machine alone."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Puts headers for browsers on every answer, and refuses requests that name a host they should not.

    A page of another site may make its own name lead to this machine (DNS rebinding), and a browser would then let it
    read what the server says; but its requests still name that host.

    Args:
        app: what answers.
        hosts: names besides this machine's own that requests may use; None allows all.
    """

    def __init__(self, app: App, hosts: Collection[str] | None) -> None:
        self._app = app
        self._hosts = None if hosts is None else {host.lower().rstrip(".") for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        host = _host(dict(scope["headers"]).get(b"host", b"").decode("latin-1"))
        if self._hosts is None or not host or host in self._hosts or is_loopback(host):
            await self._app(scope, receive, send_with_headers)
            return
        text = f"the host {host!r} is not served here: a server for others is started with --allow-host {host}"
        body = json.dumps(ApiError(403, text, code="host_not_allowed").body()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send_with_headers({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _host(header: str) -> str:
    """The host of a Host header, without its port."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")


def page_policy(page: str) -> str:
    """The Content-Security-Policy of a page with one script and one style in it: these, and this server, alone."""
    sources = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in re.findall(r"<(script|style)>(.*?)</\1>", page, re.DOTALL)
    }
    return (
        f"default-src 'none'; script-src 'sha256-{sources['script']}'; "
        f"style-src 'sha256-{sources['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Connection(H11Protocol):
    """A connection that is dropped when its request does not come as a whole in time.

    The time runs from the connection's start or the answer before, whatever comes meanwhile: a byte now and then keeps
    nothing open.

    Attributes:
        request_seconds: how long a request may take to come.
        since: since when a request is awaited; None while one is answered.
    """

    request_seconds = 10.0
    since: float | None = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look()
        waiting = [other for other in self.connections if getattr(other, "since", None) is not None]
        if len(self.connections) > MAX_CONNECTIONS and waiting:
            min(waiting, key=lambda other: other.since).drop()  # type: ignore[union-attr]

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        self._stop_waiting()
        super().on_response_complete()
        self._look()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets an error of the API's form all the same."""
        body = json.dumps(ApiError(400, msg).body()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def drop(self) -> None:
        """Close it, whatever has come of its request."""
        self._stop_waiting()
        if not self.transport.is_closing():
            self.transport.abort()

    def _look(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if answering:
            self._stop_waiting()
        elif self._timer is None and not self.transport.is_closing():
            self.since = time.monotonic()
            self._timer = self.loop.call_later(self.request_seconds, self.drop)

    def _stop_waiting(self) -> None:
        self.since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

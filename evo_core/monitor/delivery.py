"""Messages on their way to an address: from a thread, so that no step ever waits for one."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds that one answer may take to begin or go on."""

_WAITING = 100
"""Messages that wait for a slow address; more are dropped, which is said."""

_HERE = ("localhost", "127.0.0.1", "::1")

_MOST = 1 << 16
"""Bytes of an answer that are looked at."""


class NotDelivered(Exception):
    """Why a message was not taken, in words without the address."""


class Delivery:
    """Posts JSON to one address, one message after another.

    Args:
        key: the setting that names the address, which stands for it wherever something is said: it is a secret.
        address: an http or https URL.
        newest: of messages that wait, keep the newest alone.
        taken: looks at an answer that came with a status of success; says why it is none, or nothing.
    """

    def __init__(
        self, key: str, address: str, *, newest: bool = False, taken: Callable[[bytes], str | None] = lambda _: None
    ) -> None:
        self._key, self._address, self._taken, self._newest = key, address, taken, newest
        self._waiting: queue.Queue[bytes | None] = queue.Queue(1 if newest else _WAITING)
        self._thread: threading.Thread | None = None
        self._said = False
        handlers: list[Any] = [_NoRedirects]
        if (urlsplit(address).hostname or "") in _HERE:  # of this machine no proxy knows
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def send(self, body: bytes) -> None:
        """Have a message sent; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"send {self._key}", daemon=True)
            self._thread.start()
        while True:
            try:
                return self._waiting.put_nowait(body)
            except queue.Full:
                if not self._newest:
                    return self._say("messages wait in line, later ones are dropped")
                self._drop_oldest()

    def close(self, patience: float = _PATIENCE) -> None:
        """Wait for what was to be sent, so long at most."""
        if self._thread is None:
            return
        until = time.monotonic() + patience
        try:
            self._waiting.put(None, timeout=patience)
            self._thread.join(max(0.0, until - time.monotonic()))
        except queue.Full:
            pass
        if self._thread.is_alive():
            self._say("it did not answer until the end of the run")
        self._thread = None

    def _drop_oldest(self) -> None:
        try:
            self._waiting.get_nowait()
        except queue.Empty:
            pass

    def _run(self) -> None:
        while (body := self._waiting.get()) is not None:
            try:
                self.post(body)
            except NotDelivered as error:
                self._say(str(error))
            except Exception as error:  # nothing that an address does may end more than a message
                self._say(type(error).__name__)

    def post(self, body: bytes) -> None:
        """Send a message here and now.

        Raises:
            NotDelivered: it was not taken.
        """
        request = urllib.request.Request(
            self._address, body, {"Content-Type": "application/json; charset=utf-8", "User-Agent": "evo"}
        )
        try:
            with self._opener.open(request, timeout=_PATIENCE) as answer:
                content = answer.read(_MOST)
        except urllib.error.HTTPError as error:
            where = " (a redirect, which is not followed)" if 300 <= error.code < 400 else ""
            error.close()
            raise NotDelivered(f"answered with status {error.code}{where}") from None
        except urllib.error.URLError as error:
            reason = error.reason
            words = reason.strerror or type(reason).__name__ if isinstance(reason, OSError) else type(reason).__name__
            raise NotDelivered(words) from None
        except (OSError, HTTPException, ValueError) as error:
            raise NotDelivered(type(error).__name__) from None
        if (why := self._taken(content)) is not None:
            raise NotDelivered(why)

    def _say(self, why: str) -> None:
        """Say that something was not delivered, once for all."""
        if not self._said:
            self._said = True
            log.warning("%s: a message was not delivered: %s; this is said once", self._key, why)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A web hook that moved would hand the message, and the secret in the address, to another host."""

    def redirect_request(self, *args: Any, **keywords: Any) -> None:
        return None


def taken_by_feishu(answer: bytes) -> str | None:
    """Why Feishu did not take a message: it says so with status 200 and a code in the body."""
    try:
        code = json.loads(answer).get("code", 0)
    except (ValueError, AttributeError):
        return "answered with something that is no JSON object"
    return None if code in (0, None) else f"answered with code {code}"

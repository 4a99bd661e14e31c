"""What answers at an address: a Prefect server, whose, or a stranger.

Loopback is loopback: what is asked there is asked directly, whatever proxy the environment names for the rest of the
world, and Prefect's own clients are told the same.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evo_core.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")
_MOST_BYTES = 1 << 20
"""Of an answer: a stranger may have no end."""


def answers(url: str, seconds: float = 2.0) -> bool:
    """Whether an HTTP server is there. Anything it says counts."""
    return _status(url, seconds) is not None


def is_prefect(api: str, seconds: float = 2.0) -> bool:
    """Whether a Prefect server's API is there; one that wants a password first counts."""
    status, content = _get(f"{api}/health", seconds)
    if urlsplit(api).hostname == "api.prefect.cloud":
        return status == 200
    return status in (401, 403) or (status == 200 and content is True)


def serves(api: str, home: Path) -> bool:
    """Whether the Prefect server at `api` keeps its files in `home`: the one of this store, and no other's."""
    _, settings = _get(f"{api}/admin/settings", 2.0)
    found = settings.get("home") if isinstance(settings, Mapping) else None
    return isinstance(found, str) and Path(found).resolve() == home.resolve()


def checked_api(url: str, key: str = "PREFECT_API_URL") -> str:
    """The address of a Prefect API that the user set, if one is there.

    Raises:
        UserError: it is no address, nothing answers, or what does is no Prefect API.
    """
    api = url.strip().rstrip("/")
    instead = f"start it, unset {key}, or run with --no-server"
    if not _is_address(api):
        raise UserError(f"{url!r} is no address of a Prefect API", key=key, hint="write http://HOST:PORT/api")
    if is_prefect(api):
        return api
    if is_prefect(f"{api}/api"):
        raise UserError(f"{url} is a Prefect server, but not its API", key=key, hint=f"set it to {api}/api")
    if answers(api):
        raise UserError(f"what answers at {url} is no Prefect API", key=key, hint=instead)
    raise UserError(f"no Prefect server answers at {url}", key=key, hint=instead)


def around_proxies() -> dict[str, str]:
    """The variables that keep every HTTP client off a proxy where it talks to this machine.

    Both spellings are given: libraries differ in the one that they read.
    """
    stated = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host for host in (part.strip() for part in stated.split(",")) if host]
    joined = ",".join(hosts if "*" in hosts else [*hosts, *(host for host in LOOPBACK if host not in hosts)])
    return {"no_proxy": joined, "NO_PROXY": joined}


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine's loopback interface."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return host == "localhost"


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number, half an IPv6 address
        return False


def _status(url: str, seconds: float) -> int | None:
    return _get(url, seconds)[0]


def _get(url: str, seconds: float) -> tuple[int | None, Any]:
    """The status that a URL is answered with (None: not at all) and its JSON (None: it is none)."""
    direct = [urllib.request.ProxyHandler({})] if is_loopback(url) else []
    request = urllib.request.Request(url, headers=password())
    try:
        with urllib.request.build_opener(*direct).open(request, timeout=seconds) as answer:
            return answer.status, _as_json(answer.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        return error.code, None
    except (OSError, HTTPException, ValueError):  # ValueError: a host's name that cannot be one, such as a..b
        return None, None


def _as_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def password() -> dict[str, str]:
    """The header for a server that is protected by Prefect's own setting."""
    word = os.environ.get("PREFECT_API_AUTH_STRING")
    return {"Authorization": "Basic " + base64.b64encode(word.encode()).decode()} if word else {}

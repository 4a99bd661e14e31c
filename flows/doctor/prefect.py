"""Prefect: its version, the server that runs report to, and who carries out deployments there."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from evo_core.errors import UserError
from flows.doctor.finding import Asked, Finding
from flows.doctor.shown import bare_address
from flows.orchestration.address import checked_api, is_loopback, password
from flows.orchestration.server import configured_api_url

_SECONDS = 5.0
_INSTEAD = "--no-server runs without it"


def look(asked: Asked) -> Iterator[Finding]:
    """The client, and the server if one is set."""
    try:
        version = metadata.version("prefect")
    except metadata.PackageNotFoundError:
        yield Finding("prefect", "not here", "it is not installed", "pip install -c constraints.txt -e '.[pipeline]'")
        return
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    there = next(part for part in (home, *home.parents) if part.exists())
    if not os.access(there, os.W_OK):
        yield Finding("prefect", "problem", f"its folder {home} cannot be written", "set PREFECT_HOME to one that can")
    try:
        url = configured_api_url()
        if url is None:
            yield Finding("prefect", "ok", f"{version}; no server is set: evo run starts one for each run")
            return
        api = checked_api(url)
    except UserError as error:
        yield Finding("prefect", "problem", str(error))
        return
    yield from _server(api, version)


def _server(api: str, version: str) -> Iterator[Finding]:
    try:
        theirs = _ask(api, "admin/version")
        ready = _ask(api, "ready")
        pools = _ask(api, "work_pools/filter", {})
        deployments = _ask(api, "deployments/count", {})
    except (OSError, ValueError) as error:
        what = f"the server at {bare_address(api)} answers, and not to what a run asks: {error}"
        yield Finding("prefect", "problem", what, f"is PREFECT_API_AUTH_STRING right? {_INSTEAD}")
        return
    told = f"{version}, server {theirs} at {bare_address(api)}"
    if str(theirs).split(".")[:2] != version.split(".")[:2]:
        yield Finding(
            "prefect", "warning", told, "let both have one version: newer clients ask what older servers lack"
        )
    else:
        yield Finding("prefect", "ok", told)
    if not isinstance(ready, dict) or "detail" in ready:
        yield Finding("prefect database", "problem", "the server cannot reach its database", "see the server's log")
    else:
        yield Finding("prefect database", "ok", "the server reaches it")
    yield from _pools(api, pools, int(deployments))


def _pools(api: str, pools: list[dict[str, Any]], deployments: int) -> Iterator[Finding]:
    names = ", ".join(pool["name"] for pool in pools)
    if not pools and not deployments:
        yield Finding("deployments", "not here", "no work pool and no deployment", "docs/prefect.md has the commands")
        return
    online = [pool["name"] for pool in pools if _workers(api, pool["name"])]
    told = f"{deployments} deployments, work pools: {names or 'none'}"
    if deployments and not online:
        yield Finding("deployments", "warning", f"{told}; no worker is online", "prefect worker start --pool NAME")
    else:
        yield Finding("deployments", "ok", f"{told}; workers online for: {', '.join(online) or 'none'}")


def _workers(api: str, pool: str) -> bool:
    try:
        return any(one.get("status") == "ONLINE" for one in _ask(api, f"work_pools/{pool}/workers/filter", {}))
    except (OSError, ValueError):
        return False


def _ask(api: str, path: str, body: Any = None) -> Any:
    """What the server's API answers."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **password()}
    direct = [urllib.request.ProxyHandler({})] if is_loopback(api) else []
    request = urllib.request.Request(f"{api}/{path}", data, headers, method="GET" if data is None else "POST")
    with urllib.request.build_opener(*direct).open(request, timeout=_SECONDS) as told:
        return json.load(told)

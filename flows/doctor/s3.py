"""S3: credentials, the server, and whether it keeps what a commit relies on."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from evo_core.errors import UserError
from evo_core.storage.location import check_location, is_remote
from flows.doctor.finding import Asked, Finding
from flows.doctor.shown import bare_address

_PATIENCE = "5"
_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL", "S3_ACCESS_KEY_ID")


def look(asked: Asked) -> Iterator[Finding]:
    """What a location in S3 needs; without one, whether anything is set for S3 at all."""
    remote = asked.root if asked.root is not None and is_remote(asked.root) else None
    if find_spec("boto3") is None:
        install = "pip install -c constraints.txt -e '.[s3]'"
        yield Finding("s3", "problem" if remote else "not here", "boto3 is not installed", install)
        return
    if remote is None and not _is_set():
        yield Finding("s3", "not here", "nothing is set for it", "evo doctor --root s3://BUCKET/PREFIX tries a place")
        return
    os.environ.setdefault("EVO_S3_PATIENCE", _PATIENCE)
    if remote is not None:
        yield from _place(remote)
        return
    endpoint = os.environ.get("S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL") or "Amazon's own"
    told = f"set: {', '.join(name for name in _VARIABLES if os.environ.get(name)) or '~/.aws'}; server: "
    yield Finding("s3", "ok", told + bare_address(endpoint), "evo doctor --root s3://BUCKET/PREFIX tries a place")


def _is_set() -> bool:
    files = [Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"), Path("~/.aws/config")]
    return any(os.environ.get(name) for name in _VARIABLES) or any(file.expanduser().is_file() for file in files)


def _place(location: str) -> Iterator[Finding]:
    from evo_core.storage.files import create_file, delete
    from evo_core.storage.s3.objects import is_empty
    from evo_core.storage.s3.place import place_of
    from evo_core.storage.s3.trouble import hint_for

    try:
        check_location(location, "--root")
        place = place_of(location)
        is_empty(place)
        server = bare_address(place.endpoint) if place.endpoint else "Amazon's own"
        yield Finding("s3", "ok", f"{location} can be listed; server: {server}")
        probe = f"{location.rstrip('/')}/.evo-doctor-{uuid.uuid4().hex}"
        try:
            first, second = (create_file(probe, "x") for _ in range(2))
        finally:
            delete(probe)
        if first and not second:
            yield Finding("s3 commits", "ok", "an object is written only if it is absent; it can be deleted")
        else:
            hint = "two writers would overwrite each other: take a server that honours If-None-Match"
            yield Finding("s3 commits", "problem", "the server writes over an object that is there", hint)
    except UserError as error:
        yield Finding("s3", "problem", error.message, error.hint)
    except OSError as error:
        yield Finding("s3", "problem", f"{location}: {error.strerror or error}", hint_for(error))

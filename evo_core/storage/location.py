"""How a location is written: one grammar for configurations, pipelines and command lines.

::

    path, ~/path, local:PATH, file:///PATH                  on a file system of this machine
    s3://bucket/key, boto3:s3://bucket.endpoint/key         in an object store
    owner/name                                              on a model hub, where one may stand and no such path is

Whatever else begins like ``gs://`` or ``prefix:`` is refused: taken for a path it would become a folder of that name.
A `Path` is never looked at for a prefix; a text is.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from evo_core.errors import ConfigError

Location = str | Path
"""A path, or a text in the grammar above. What lies in a store stays a text: `Path` would take ``//`` for ``/``."""

_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?://)?")
_REMOTE = ("s3://", "boto3:s3://")
_PREFIXES = ("local:", "file://", "file:", *_REMOTE)  # file:/x is what `Path` makes of file:///x
_GRAMMAR = "known are PATH, local:PATH, file:///PATH, s3://BUCKET/KEY and boto3:s3://BUCKET.ENDPOINT/KEY"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class LocationError(ConfigError):
    """A text that is no location, or one in a store where a path must stand."""


def is_remote(location: Location) -> bool:
    """Whether a location is in an object store."""
    return isinstance(location, str) and location.startswith(_REMOTE)


def file_name(location: Location) -> str:
    """The last part of a location."""
    return str(location).rstrip("/").rpartition("/")[2]


def is_hub_id(location: str) -> bool:
    """Whether a location looks like a model hub's ``owner/name`` and there is no such local folder."""
    return _HUB_ID.fullmatch(location) is not None and not Path(location).exists()


def is_unprefixed(location: str) -> bool:
    """Whether a location leaves open that it is local."""
    return not location.startswith(_PREFIXES)


def names_nothing(location: str) -> bool:
    """Whether nothing stands behind the prefix, or nothing at all."""
    return not location.removeprefix(_prefix(location)).strip()


def check_location(location: Location, key: str | None = None) -> None:
    """Refuse a text outside the grammar.

    Raises:
        LocationError: it is empty, begins with a prefix that is not known, or has nothing behind its prefix.
    """
    if isinstance(location, Path):
        return
    if not location.strip():
        raise LocationError("is empty: a location is expected", key=key)
    if "\0" in location:
        raise LocationError("holds a zero byte, which no name can", key=key)
    found = _PREFIX.match(location.lstrip())
    if found is None:
        return
    known = _prefix(location)
    if not known:
        raise LocationError(_unknown(location, found[0]), key=key, hint=f"{_GRAMMAR}; a path may begin with ./")
    rest = location.removeprefix(known)
    if names_nothing(location) or (is_remote(location) and not rest.partition("/")[0].strip()):
        raise LocationError(f'"{location}" names nothing behind {known}', key=key, hint=_GRAMMAR)
    if is_remote(location):
        _check_store(location, known, key)
    if known in ("file://", "file:") and not rest.startswith("/"):
        raise LocationError(f'"{location}" is no absolute path', key=key, hint=f"write local:{rest} or file:///{rest}")


def _check_store(location: str, prefix: str, key: str | None) -> None:
    head = location.removeprefix(prefix).partition("/")[0]
    if "@" in head:  # what stands before it may be a secret, and is not repeated
        hint = "keep credentials in the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise LocationError(f"a location in a store ({prefix}…) holds no @", key=key, hint=hint)
    if prefix.startswith("boto3:") and not all(head.partition(".")):
        raise LocationError(f'"{location}" names no server', key=key, hint="boto3:s3://BUCKET.ENDPOINT/KEY")


def local_path(location: Location, key: str | None = None) -> Path:
    """The path that a local location means: without its prefix, ``~`` spelled out.

    Raises:
        LocationError: it is no location, or one in a store.
    """
    return expanded(location) if isinstance(location, Path) else _local_path(location, key)


def path_to_write(location: Location, key: str | None = None) -> Path:
    """The same for what is written; a `Path` has been spelled out by whoever made it.

    Raises:
        LocationError: it is no location, or one in a store.
    """
    return location if isinstance(location, Path) else _local_path(location, key)


def _local_path(location: str, key: str | None) -> Path:
    check_location(location, key)
    if is_remote(location):
        raise LocationError(f'"{location}" is in a store, and a local path is expected', key=key)
    return expanded(Path(location.removeprefix(_prefix(location))))


def expanded(path: Path) -> Path:
    """The path with ``~`` spelled out.

    Raises:
        LocationError: nobody has that name.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise LocationError(f'"{path}": there is no such home', hint="write ./~… for a path that begins so") from None


def _prefix(location: str) -> str:
    """Which of the known prefixes it begins with; empty for a bare path."""
    return next(filter(location.startswith, _PREFIXES), "")


def _unknown(location: str, prefix: str) -> str:
    near = difflib.get_close_matches(prefix.lower(), ("local:", "file://", *_REMOTE), n=1)
    return f'"{location}": no place is known by "{prefix}"' + (f'; did you mean "{near[0]}"?' if near else "")

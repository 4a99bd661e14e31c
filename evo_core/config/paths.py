"""How places are written in a configuration: ``local:FOLDER``, ``boto3:s3://…``, ``s3://…``, or plain."""

from __future__ import annotations

import re
from pathlib import Path

REMOTE_PREFIXES = ("boto3:", "s3:", "volc:", "oss2:")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_remote(place: str) -> bool:
    """Whether a place is on an object store."""
    return place.startswith(REMOTE_PREFIXES)


def is_hub_id(place: str) -> bool:
    """Whether a place looks like a model hub's ``owner/name`` and there is no such local folder."""
    return _HUB_ID.fullmatch(place) is not None and not Path(place).exists()


def local_path(place: str) -> Path:
    """The folder that a local place means, with its prefix ``local:`` taken off."""
    return Path(place.removeprefix("local:")).expanduser()

"""What a location in a store means: which server, which bucket, which key."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

_ENDPOINT = re.compile(r"([^./]+)\.([^/]+)")
_BOTO3 = "boto3:s3://"


@dataclass(frozen=True)
class Place:
    """An object, or a folder of objects.

    Attributes:
        uri: as it was written, for messages.
        key: without a slash before or after it; empty for the bucket itself.
        endpoint: the server's URL; None for Amazon's.
        own_keys: whether the credentials may be in the variables that go with ``boto3:``.
    """

    uri: str
    bucket: str
    key: str
    endpoint: str | None
    own_keys: bool

    @property
    def prefix(self) -> str:
        """What the keys below a folder begin with."""
        return f"{self.key}/" if self.key else ""

    def below(self, path: str) -> Place:
        """The place with a path, without a slash before it, below this one."""
        return replace(self, uri=f"{self.uri.rstrip('/')}/{path}", key=f"{self.prefix}{path}")

    def beside(self, name: str) -> Place:
        """The place of that name in the folder that this one is in."""
        uri, key = self.uri.rstrip("/").rpartition("/")[0], self.key.rpartition("/")[0]
        return replace(self, uri=uri, key=key).below(name)


def place_of(uri: str) -> Place:
    """The place of a location that `evo_core.storage.location.check_location` passes."""
    own_keys = uri.startswith(_BOTO3)
    head, _, key = uri.partition("://")[2].partition("/")
    endpoint = os.environ.get("S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL") or None
    if own_keys and (named := _ENDPOINT.fullmatch(head)) is not None:
        head, endpoint = named[1], _url(named[2])
    return Place(uri, head, key.strip("/"), endpoint, own_keys)


def _url(host: str) -> str:
    """Plain HTTP, as InternEvo has it, but where nobody would want that."""
    secure = host.endswith((":443", ".amazonaws.com", ".amazonaws.com.cn"))
    return f"{'https' if secure else 'http'}://{host}"

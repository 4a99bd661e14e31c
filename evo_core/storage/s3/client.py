"""Connections to stores: one client for each server and set of credentials, in each process.

Credentials come from AWS's usual places (``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``, a profile, the machine's
role). For ``boto3:s3://…`` locations InternEvo's ``S3_ACCESS_KEY_ID`` and ``S3_SECRET_ACCESS_KEY_ID`` go before these.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from evo_core.errors import ConfigError, UserError
from evo_core.storage.s3.place import Place

CREDENTIALS = (
    "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the server from S3_ENDPOINT_URL or "
    "AWS_ENDPOINT_URL; with boto3: from S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY_ID"
)
PATIENCE = "EVO_S3_PATIENCE"
"""The variable with the seconds for which a request that fails in passing is repeated."""

THREADS = 8
"""Requests at a time, where there are many of them."""

_OWN = ("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY_ID")
_DEFAULT_PATIENCE, _CONNECT, _READ = 120.0, 10.0, 30.0

_clients: dict[tuple[Any, ...], tuple[Any, Any]] = {}
"""Each with the credentials that were found when it was made."""

_lock = threading.Lock()


def patience() -> float:
    """Seconds for which a request that fails in passing is repeated.

    Raises:
        ConfigError: the variable holds something else.
    """
    text = os.environ.get(PATIENCE, "")
    try:
        seconds = float(text) if text else _DEFAULT_PATIENCE
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f'"{text}" is no number of seconds', key=PATIENCE, hint=f"default: {_DEFAULT_PATIENCE:g}")
    return seconds


def client_for(place: Place) -> Any:
    """The boto3 client for a place; threads may share it.

    Raises:
        UserError: boto3 is not installed, or the credentials in the environment are half of a pair.
    """
    key = _key(place)
    with _lock:
        if key not in _clients:
            session = _new_session(place)
            _clients[key] = _new_client(place, session), _credentials(place, session)
        return _clients[key][0]


def renew_client(place: Place, refused: Any) -> bool:
    """Have `client_for` give another client than one whose credentials a store does not take, if there are others by
    now: something else may write short-lived ones into AWS's file, which botocore reads once. Returns whether it will.

    Raises:
        UserError: as `client_for`.
    """
    key = _key(place)
    with _lock:
        client, credentials = _clients.get(key, (None, None))
        if client is not refused:
            return True  # another thread was here
        session = _new_session(place)
        if (found := _credentials(place, session)) == credentials:
            return False
        _clients[key] = _new_client(place, session), found
        return True


def _key(place: Place) -> tuple[Any, ...]:
    # a child of this process may not use its sockets, and a test or a notebook may set other variables
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "S3_", "EVO_S3_"))))
    return os.getpid(), place.endpoint, place.own_keys, settings


def _new_session(place: Place) -> Any:
    try:
        from boto3.session import Session
    except ImportError:
        raise UserError(
            "the package boto3, by which object stores are read and written, is not installed",
            file=place.uri,
            hint="pip install 'evo-lm[s3]'",
        ) from None
    return Session()


def _credentials(place: Place, session: Any) -> Any:
    """Those that a client of this session has, to be compared; None where the environment names them, or nothing."""
    found = None if place.own_keys and _own_keys() else session.get_credentials()
    return found and found.get_frozen_credentials()


def _new_client(place: Place, session: Any) -> Any:
    from botocore.config import Config

    own = _own_keys() if place.own_keys else {}
    config = Config(
        connect_timeout=min(_CONNECT, patience()),
        read_timeout=min(_READ, patience()),
        retries={"total_max_attempts": 1},  # `trouble.request` repeats, and says so
        max_pool_connections=2 * THREADS,
    )
    region = session.region_name or ("us-east-1" if place.endpoint else None)
    return session.client("s3", endpoint_url=place.endpoint, region_name=region, config=config, **own)


def _own_keys() -> dict[str, str]:
    found = [os.environ.get(name) for name in _OWN]
    if not any(found):
        return {}
    for name, other, value in zip(_OWN, reversed(_OWN), found, strict=True):
        if not value:
            raise ConfigError(f"is not set, and {other} is", key=name, hint="set both, or neither for AWS's own")
    return {"aws_access_key_id": str(found[0]), "aws_secret_access_key": str(found[1])}

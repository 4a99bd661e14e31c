"""What goes wrong with a store: what passes by itself is tried again, and the rest is one `OSError` in plain words.

No message holds a credential: what a server says is shown without the words that are one here.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from evo_core.storage.s3.client import CREDENTIALS, PATIENCE, client_for, patience, renew_client
from evo_core.storage.s3.place import Place

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_WAIT, _LONGEST_WAIT = 0.2, 10.0

_PASSING = {
    "InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "RequestTimeoutException", "Throttling",
    "ThrottlingException", "TooManyRequests", "RequestLimitExceeded", "BandwidthLimitExceeded", "OperationAborted",
    "ConditionalRequestConflict",
}  # fmt: skip
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_WRONG_KEYS = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
    "AuthorizationHeaderMalformed", "InvalidSecurity", "NotSignedUp", "AccountProblem", "RequestTimeTooSkewed",
}  # fmt: skip
_NO_RIGHT = {"AccessDenied", "403", "AllAccessDisabled"}
_REFUSED = _WRONG_KEYS | _NO_RIGHT | {"400"}
"""What a store says of credentials that have expired; to a question without an answer's body no more than a status."""

ABSENT = {"404", "NoSuchKey", "NotFound"}
"""What a store says of an object that is not there."""

CHANGED = {"412", "PreconditionFailed"}
"""What it says where a condition does not hold: the object is another, or there is one."""


_said: dict[str | None, float] = {}
_saying = threading.Lock()


def request(place: Place, call: Callable[[Any], T], *, failed: Callable[[], object] = lambda: None) -> T:
    """Carry out a request, again and again with longer and longer breaks where it fails in passing.

    Args:
        call: makes the request with the client that it is given, and reads the answer to its end.
        failed: called before each repetition: the store may have done what it was asked all the same.

    Raises:
        OSError: it failed for good, or for as long as `patience` says; `strerror` says how.
        UserError: boto3 is not installed, or a variable of the environment is wrong.
    """
    wait, until, renewed = _FIRST_WAIT, None, False
    while True:
        client = None
        try:
            client = client_for(place)
            return call(client)
        except Exception as error:
            if not renewed and error_code(error) in _REFUSED and _renewed(place, client):
                renewed = True
                failed()
                continue
            if not _passes(error):
                raise _in_words(place, error) from error
            until = until or time.monotonic() + patience()
            left = until - time.monotonic()
            if left <= 0:
                what = f"the store gave no good answer for {patience():g} s ({_short(error)})"
                raise OSError(errno.ETIMEDOUT, what, place.uri) from error
            _say(place, error)
            time.sleep(min(wait * random.uniform(0.5, 1.0), left))
            wait = min(2 * wait, _LONGEST_WAIT)
            failed()


def hint_for(error: BaseException) -> str | None:
    """What a user may do about what `request` raised."""
    if isinstance(error, TimeoutError):
        return f"check the server and the network; {PATIENCE}=SECONDS waits longer"
    return CREDENTIALS if isinstance(error, PermissionError) else None


def _renewed(place: Place, client: Any) -> bool:
    """Whether there are other credentials than those that the store refused."""
    from botocore.exceptions import BotoCoreError

    try:
        return renew_client(place, client)
    except BotoCoreError:
        return False  # they cannot be read: what the store said is the better error


def _passes(error: Exception) -> bool:
    """Whether the same request may do better in a moment."""
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        code, status = error_code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return code in _PASSING or status in _PASSING_STATUS or code in map(str, _PASSING_STATUS)
    if isinstance(error, exceptions.SSLError):
        return False
    broken = (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError)
    return isinstance(error, (*broken, ConnectionError))


def _in_words(place: Place, error: Exception) -> Exception:
    from botocore import exceptions

    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return OSError(errno.EACCES, "there are no credentials for this store", place.uri)
    if not isinstance(error, exceptions.ClientError):
        if isinstance(error, exceptions.BotoCoreError):
            return OSError(errno.EIO, _short(error), place.uri)
        return error
    code = error_code(error)
    if code == "NoSuchBucket":
        return OSError(errno.ENOENT, f"there is no bucket {place.bucket}", place.uri)
    if code in ABSENT:
        return OSError(errno.ENOENT, "there is no such file", place.uri)
    if code in CHANGED:
        return OSError(errno.ESTALE, "this file has changed since it was listed", place.uri)
    if code in _WRONG_KEYS:
        return OSError(errno.EACCES, f"the store does not take these credentials ({code})", place.uri)
    if code in _NO_RIGHT:
        verb = "read" if error.operation_name.startswith(("Get", "Head", "List")) else "written"
        return OSError(errno.EACCES, f"it may not be {verb} with these credentials ({code})", place.uri)
    return OSError(errno.EIO, f"the store refuses ({_short(error)})", place.uri)


def error_code(error: Any) -> str:
    """What a store calls an error; of an answer without a body its HTTP status. Empty for one of the network's."""
    return str(_answer(error).get("Code", ""))


def _answer(error: Any) -> dict[str, Any]:
    response = getattr(error, "response", None)
    return response.get("Error", {}) if isinstance(response, dict) else {}


def _short(error: Exception) -> str:
    """An error in a few words, without credentials."""
    message = _answer(error).get("Message") or str(error)
    for name, value in os.environ.items():
        if value and name.startswith(("AWS_", "S3_")) and ("KEY" in name or "TOKEN" in name):
            message = message.replace(value, "***")
    first = (message.strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    code = error_code(error)
    return f"{code}: {first}" if code and code not in first else first


def _say(place: Place, error: Exception) -> None:
    """Once, however many requests fail at a time."""
    with _saying:
        now, before = time.monotonic(), _said.get(place.endpoint)
        _said[place.endpoint] = now
        if before is not None and now - before < 2 * _LONGEST_WAIT + patience():
            return
    log.warning("%s: %s: trying again for up to %g s", place.uri, _short(error), patience())

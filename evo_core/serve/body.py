"""Reading a request's body: bounded while it comes, and JSON before anything is made of it."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from evo_core.serve.answers import ApiError

_JSON_TYPE = re.compile(r"application/(?:[\w.-]+\+)?json", re.IGNORECASE)
_HALF_OF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_body(http: HttpRequest, limit: int) -> bytes:
    """The body of a JSON request.

    Args:
        limit: bytes that it may have.

    Raises:
        ApiError: the headers say that it is no JSON, or it is longer than the limit.
    """
    _check_headers(http)
    too_long = ApiError(413, f"the body is longer than {limit} bytes (--max-body)", code="body_too_large")
    length = http.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise too_long
    body = bytearray()
    try:
        async for part in http.stream():
            body += part
            if len(body) > limit:
                raise too_long
    except ClientDisconnect:
        raise ApiError(400, "the client went away before its request had come") from None
    return bytes(body)


def _check_headers(http: HttpRequest) -> None:
    """A browser sends other sites' pages' JSON only if the server says so first; any other type it sends unasked."""
    kind, *parameters = http.headers.get("content-type", "").split(";")
    if not _JSON_TYPE.fullmatch(kind.strip()):
        given = f"is {kind.strip()!r}" if kind.strip() else "is missing"
        raise ApiError(415, f"the header Content-Type {given}: it must be application/json")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip("\"'").lower() not in ("utf-8", "utf8"):
            raise ApiError(415, f"the charset {value.strip()!r} is not read: JSON is UTF-8")
    if http.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise ApiError(415, "the header Content-Encoding must be left out: bodies are read as they are")


def parse_json(body: bytes) -> Any:
    """The value of a body.

    Raises:
        ApiError: it is no JSON, or holds half a surrogate pair, which no text can hold.
    """
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ApiError(400, "the body is not JSON that is read here (too many lists in one another)") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON ({error})") from None
    if _HALF_OF_A_PAIR.search(body):
        _refuse_half_pairs(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _refuse_half_pairs(value: Any) -> None:
    fields = value.items() if isinstance(value, dict) else [(None, value)]
    for name, inner in fields:
        try:
            json.dumps([name, inner], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            shown = None if name is None else name.encode(errors="replace").decode()
            message = "half a surrogate pair (such as \\ud800), which is no character"
            raise ApiError(400, f"{shown}: {message}" if shown else message, param=shown) from None

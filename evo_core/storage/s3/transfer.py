"""Files to a store and from it: large ones in pieces, several at a time.

What is uploaded appears whole or not at all: a failure takes its pieces back. A killed process leaves those that it had
sent, unseen, in the store's list of unfinished uploads.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from evo_core.errors import UserError
from evo_core.pulse import beat
from evo_core.storage.s3.client import THREADS
from evo_core.storage.s3.place import Place
from evo_core.storage.s3.stream import span_of
from evo_core.storage.s3.trouble import ABSENT, CHANGED, error_code, request

PIECE = 16 << 20
"""Bytes of a piece; what is not longer goes in one request."""

MOST_PIECES = 9000
"""Of one object: a store takes 10,000."""

_READ = 1 << 20
_WRITER = "evo-writer"
"""Metadata by which whoever asked twice, for the first answer was lost, knows its own object again."""

T = TypeVar("T")


class Wanted(NamedTuple):
    """An object to download: its size and ETag, and the new file that it goes to."""

    place: Place
    size: int
    tag: str
    path: Path


def put(place: Place, content: bytes, *, if_absent: bool = False) -> bool:
    """Write an object in one request; False where `if_absent` was asked and something is there.

    Raises:
        OSError: as `evo_core.storage.s3.trouble.request`.
    """
    write = Written(place, if_absent)
    return write(lambda client: client.put_object(**write.where, **write.mark, Body=content, **write.condition))


def upload(place: Place, path: Path, *, if_absent: bool = False) -> bool:
    """Write an object from a file; False where `if_absent` was asked and something is there.

    Raises:
        OSError: the file cannot be read, or as `evo_core.storage.s3.trouble.request`.
    """
    size = path.stat().st_size
    if size <= PIECE:
        return put(place, path.read_bytes(), if_absent=if_absent)
    write = Written(place, if_absent)
    begun = request(place, lambda client: client.create_multipart_upload(**write.where, **write.mark))
    where = {**write.where, "UploadId": begun["UploadId"]}

    def send(piece: tuple[int, int, int]) -> dict[str, Any]:
        number, start, end = piece
        with path.open("rb") as file:
            data = os.pread(file.fileno(), end - start, start)
        if len(data) != end - start:
            raise OSError(errno.EIO, "became shorter while it was read", str(path))
        return send_piece(place, where, number, data)

    done = False
    try:
        cuts = _pieces(size, max(PIECE, -(-size // MOST_PIECES)))
        all_parts = {"Parts": in_threads(send, [(number, *cut) for number, cut in enumerate(cuts, 1)])}
        done = write(
            lambda client: client.complete_multipart_upload(**where, MultipartUpload=all_parts, **write.condition)
        )
        return done
    finally:
        if not done:
            with suppress(OSError, UserError):
                request(place, lambda client: client.abort_multipart_upload(**where))


def send_piece(place: Place, where: Mapping[str, str], number: int, data: bytes | bytearray) -> dict[str, Any]:
    """Send a piece of an upload; what the store is told of it when the object is put together.

    Raises:
        OSError: as `evo_core.storage.s3.trouble.request`.
    """
    sent = request(place, lambda client: client.upload_part(**where, PartNumber=number, Body=data))
    return {"PartNumber": number, **{name: sent[name] for name in sent if name == "ETag" or "Checksum" in name}}


def download(wanted: Iterable[Wanted]) -> None:
    """Read whole objects into files, whose folders are made.

    Raises:
        OSError: a file cannot be written, an object is another by now, or as `evo_core.storage.s3.trouble.request`.
    """
    jobs = []
    for one in wanted:
        one.path.parent.mkdir(parents=True, exist_ok=True)
        with one.path.open("xb") as file:
            file.truncate(one.size)
        jobs += [(one, start, end) for start, end in _pieces(one.size, PIECE)]
    in_threads(lambda job: request(job[0].place, lambda client: _fetch(client, *job)), jobs)


def read_range(place: Place, start: int, buffer: memoryview, tag: str) -> None:
    """Fill a buffer with the bytes from `start` on of that version of an object.

    Raises:
        OSError: they end before that, the object is another by now, or as `evo_core.storage.s3.trouble.request`.
    """

    def read(client: Any) -> None:
        body, at = client.get_object(**span_of(place, start, start + len(buffer), tag))["Body"], 0
        with closing(body):
            while at < len(buffer) and (data := body.read(min(_READ, len(buffer) - at))):
                buffer[at : at + len(data)] = data
                at += len(data)
        if at != len(buffer):
            raise ConnectionError("the store ended its answer early")

    if len(buffer):
        request(place, read)


def in_threads(call: Callable[[Any], T], jobs: Iterable[Any]) -> list[T]:
    """The results of a call on each of them, several at a time; after a failure no more are begun. Each is progress of
    the thread that waits for them."""
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(call, job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
                beat()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return [future.result() for future in futures]


class Written:
    """The request that makes an object visible. It knows its own object again where the answer to it was lost: asked a
    second time, the store says that something is there, or that there is no such upload."""

    def __init__(self, place: Place, if_absent: bool) -> None:
        self._place, self._if_absent, self._asked_before = place, if_absent, False
        self._writer = uuid.uuid4().hex
        self.where = {"Bucket": place.bucket, "Key": place.key}
        self.mark = {"Metadata": {_WRITER: self._writer}}
        self.condition = {"IfNoneMatch": "*"} if if_absent else {}

    def __call__(self, write: Callable[[Any], object]) -> bool:
        def attempt(client: Any) -> bool:
            try:
                write(client)
            except client.exceptions.ClientError as error:
                code = error_code(error)
                taken = self._if_absent and code in CHANGED
                if not taken and not (self._asked_before and code == "NoSuchUpload"):
                    raise
                if self._asked_before and self._is_ours(client):
                    return True
                if not taken:
                    raise
                return False
            return True

        return request(self._place, attempt, failed=self._repeated)

    def _repeated(self) -> None:
        self._asked_before = True

    def _is_ours(self, client: Any) -> bool:
        try:
            there = client.head_object(**self.where)
        except client.exceptions.ClientError as error:
            if error_code(error) in ABSENT:
                return False
            raise
        return bool(there.get("Metadata", {}).get(_WRITER) == self._writer)


def _fetch(client: Any, one: Wanted, start: int, end: int) -> None:
    body = client.get_object(**span_of(one.place, start, end, one.tag))["Body"]
    with closing(body), one.path.open("r+b", buffering=0) as file:
        file.seek(start)
        while data := body.read(_READ):
            file.write(data)
        if file.tell() != end:
            raise ConnectionError("the store ended its answer early")


def _pieces(size: int, piece: int) -> list[tuple[int, int]]:
    return [(start, min(start + piece, size)) for start in range(0, size, piece)]

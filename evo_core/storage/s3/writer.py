"""An object that is written from its beginning to its end, without a file of this machine."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from evo_core.errors import UserError
from evo_core.pulse import beat
from evo_core.storage.s3.client import THREADS
from evo_core.storage.s3.place import Place
from evo_core.storage.s3.transfer import MOST_PIECES, PIECE, Written, put, send_piece
from evo_core.storage.s3.trouble import request


class ObjectWriter:
    """Sends pieces while the next is being written; nothing is seen before `close`.

    Of the content there are at most as many pieces in memory as are sent at a time, and the one that is being filled.
    Every method raises what `evo_core.storage.s3.trouble.request` does; then `abort` is left to be called.

    Args:
        size: about how many bytes there will be. All pieces but the last are of one size: some stores take no others.
    """

    def __init__(self, place: Place, size: int) -> None:
        self._place = place
        self._written = Written(place, if_absent=False)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="upload")
        self._size, self._piece = max(PIECE, -(-size // MOST_PIECES)), bytearray()
        self._sent: list[Future[dict[str, Any]]] = []
        self._upload: dict[str, str] | None = None

    def write(self, data: Any) -> int:
        """Take bytes, and wait where the store is slower than whoever writes them."""
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            taken = view[at : at + self._size - len(self._piece)]
            self._piece += taken
            at += len(taken)
            if len(self._piece) == self._size:
                self._send()
        return at

    def close(self) -> None:
        """Have the object seen, whole."""
        if self._upload is None:
            put(self._place, bytes(self._piece))
        else:
            if self._piece:
                self._send()
            pieces = {"Parts": [_sent(future) for future in self._sent]}
            where = self._upload
            self._written(lambda client: client.complete_multipart_upload(**where, MultipartUpload=pieces))
        self._pool.shutdown()

    def abort(self, *, asks: bool = True) -> None:
        """Take back what was sent.

        Args:
            asks: False asks the store for nothing more, for it does not answer.
        """
        self._pool.shutdown(cancel_futures=True)
        if asks and (where := self._upload) is not None:
            with suppress(OSError, UserError):
                request(self._place, lambda client: client.abort_multipart_upload(**where))

    def _send(self) -> None:
        if self._upload is None:
            begun = request(
                self._place, lambda client: client.create_multipart_upload(**self._written.where, **self._written.mark)
            )
            self._upload = {**self._written.where, "UploadId": begun["UploadId"]}
        if len(self._sent) >= THREADS:
            _sent(self._sent[-THREADS])
        number = len(self._sent) + 1
        self._sent.append(self._pool.submit(send_piece, self._place, self._upload, number, self._piece))
        self._piece = bytearray()


def _sent(piece: Future[dict[str, Any]]) -> dict[str, Any]:
    """What the store is told of a piece, once it has it."""
    result = piece.result()
    beat()  # here, for it is progress of the thread that waits
    return result

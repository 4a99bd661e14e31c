"""Token shards on disk: ``X.bin``, one JSON line per document, and ``X.bin.meta``, where each line starts.

``X.bin`` holds ``{"tokens": [1, 2]}`` and a newline per document, in exactly these bytes: offsets count them.
A negative id is context: the model reads its absolute value and is not trained to predict it.
``X.bin.meta`` is a ``.npy`` file with an integer array [documents, 2] of (byte offset of the line, tokens in
it), int64 here; int32 metas of other tools are read as well.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import orjson

from evo_core.errors import DataError
from evo_core.storage.atomic import new_draft, publish

_PREFIX, _SUFFIX = b'{"tokens": [', b"]}"


def meta_path(path: Path) -> Path:
    """``X.bin.meta`` of ``X.bin``."""
    return path.with_name(path.name + ".meta")


def encode_line(tokens: Sequence[int] | np.ndarray) -> bytes:
    """A document's line with its newline, as ``json.dumps({"tokens": tokens}) + "\\n"`` writes it.

    Args:
        tokens: [tokens] ids, of any integer type.
    """
    if isinstance(tokens, np.ndarray):
        tokens = np.ascontiguousarray(tokens)
    ids = orjson.dumps(tokens, option=orjson.OPT_SERIALIZE_NUMPY)
    return b'{"tokens": %b}\n' % ids.replace(b",", b", ")


class BinWriter:
    """Writes a ``.bin`` and its meta; neither is there before both are complete and on disk.

    Use it as a context manager: leaving it normally commits, leaving it by an exception removes what was
    written. Both files are written as drafts beside their places, then renamed, the meta last: a ``.bin`` with its
    meta is complete.

    Args:
        durable: whether they are on the disk before they are visible (see `evo_core.storage.atomic`). For files that do
            not outlive the process that asked for them it is most of the time of a small one.
    """

    def __init__(self, path: str | Path, *, durable: bool = True) -> None:
        self.path = Path(path)
        self._durable = durable
        self._beside: dict[Path, bytes | None] = {}
        self._drafts: list[tuple[Path, Path]] = []
        self._file = self._draft(self.path).open("wb", buffering=1 << 20)
        self._offsets, self._lengths = array("q"), array("q")
        self._offset = 0
        self.tokens = 0

    @property
    def documents(self) -> int:
        """Documents written so far."""
        return len(self._offsets)

    def write(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Append a document: [tokens] ids of any integer type, at least one.

        Raises:
            ValueError: there is none.
        """
        if len(tokens) == 0:
            raise ValueError("a document without tokens")
        self.write_line(encode_line(tokens), len(tokens))

    def write_line(self, line: bytes, tokens: int) -> None:
        """Append a document as its line (as `encode_line` makes it) with its number of tokens."""
        self._file.write(line)
        self._offsets.append(self._offset)
        self._lengths.append(tokens)
        self._offset += len(line)
        self.tokens += tokens

    def append(self, path: str | Path) -> np.ndarray:
        """Append all documents of another ``.bin``, byte for byte; returns their lengths, int64 [documents].

        Raises:
            DataError: it, or its meta, is missing or damaged.
        """
        reader = BinReader(path)
        with Path(path).open("rb") as file:
            shutil.copyfileobj(file, self._file, 1 << 20)
            size = file.tell()
        self._offsets.frombytes((reader.offsets + self._offset).tobytes())
        self._lengths.frombytes(reader.lengths.tobytes())
        self._offset += size
        self.tokens += int(reader.lengths.sum())
        return reader.lengths

    def put_beside(self, path: Path, content: bytes | None) -> None:
        """Have a small file in the same folder appear together with the ``.bin``; with None: disappear."""
        self._beside[path] = content

    def commit(self) -> None:
        """Make the files durable and visible."""
        self._file.close()
        for path, content in self._beside.items():
            if content is not None:
                self._draft(path).write_bytes(content)
        meta = np.stack([np.asarray(self._offsets, np.int64), np.asarray(self._lengths, np.int64)], axis=1)
        with self._draft(meta_path(self.path)).open("wb") as file:
            np.save(file, meta)
        # A meta of an earlier file of this name would describe other bytes: without it there is no such token file.
        stale = [meta_path(self.path), *(path for path, content in self._beside.items() if content is None)]
        tokens, *beside, meta_file = self._drafts
        publish([*beside, tokens, meta_file], stale=stale, durable=self._durable)

    def abort(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError):  # on a full disk what is buffered cannot be written
            self._file.close()
        for draft, _ in self._drafts:
            draft.unlink(missing_ok=True)

    def _draft(self, path: Path) -> Path:
        draft = new_draft(path)
        self._drafts.append((draft, path))
        return draft

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.commit()
        except BaseException:
            self.abort()
            raise


def write_error(path: Path, error: OSError) -> DataError:
    """What happened when a file was written, in the user's terms."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = "the file would be larger than is allowed" if error.errno == errno.EFBIG else "the disk is full"
        return DataError(f"{what}: nothing was left here", file=path, hint="free some space and run again")
    return DataError(f"it cannot be written ({error.strerror or error})", file=path)


class BinReader:
    """Reads a ``.bin`` through its meta, memory-mapped.

    Attributes:
        offsets: int64 [documents], the byte each document's line starts at.
        lengths: int64 [documents], tokens of each document.

    Raises:
        DataError: a file is missing, the meta is not readable or does not describe this ``.bin``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with open_token_file(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            self._bytes: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        meta = read_meta(meta_path(self.path))
        self.offsets = np.ascontiguousarray(meta[:, 0])
        self.lengths = np.ascontiguousarray(meta[:, -1])
        self._check_meta(size)

    def __len__(self) -> int:
        return len(self.offsets)

    def line(self, document: int) -> bytes:
        """The bytes of a document's line, without its newline."""
        offset = int(self.offsets[document])
        end = self._bytes.find(b"\n", offset)
        if end < 0:
            raise self._error(document, "the line has no end: the file was cut off")
        return self._bytes[offset:end]

    def tokens(self, document: int) -> np.ndarray:
        """The ids of a document, int64 [lengths[document]].

        Raises:
            DataError: the line is no list of token ids, or has another number of them than the meta says.
        """
        line = self.line(document)
        length = int(self.lengths[document])
        if line.startswith(_PREFIX) and line.endswith(_SUFFIX):
            ids = _parse_ids(line[len(_PREFIX) : -len(_SUFFIX)])
            # The parser stops at whatever is no number, and takes a missing one for 0: a full count without zeros means
            # that it read everything.
            if len(ids) == length and line.count(b",") == max(length - 1, 0) and ids.all():
                return ids
        return self._tokens_of_any_json(line, document)

    def check(self, vocab_size: int | None = None) -> None:
        """Read every document; with `vocab_size`, require every id (its absolute value) to be below it.

        Raises:
            DataError: naming the first document that is wrong.
        """
        for document in range(len(self)):
            ids = self.tokens(document)
            # Of the smallest int64 the absolute value is none.
            if vocab_size is not None and len(ids) and (top := max(int(ids.max()), -int(ids.min()))) >= vocab_size:
                raise self._error(
                    document,
                    f"token id {top} is outside the vocabulary of {vocab_size}",
                    hint="the tokens were made with another tokenizer, or model.vocab_size is too small",
                )

    def _tokens_of_any_json(self, line: bytes, document: int) -> np.ndarray:
        """The ids of a line written with other spaces or further fields, and the precise error."""
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise self._error(document, f"not a JSON line ({error})") from None
        ids = record.get("tokens") if isinstance(record, dict) else None
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise self._error(document, 'expected {"tokens": [ids]}')
        if len(ids) != self.lengths[document]:
            raise self._error(document, f"{len(ids)} tokens where the meta says {self.lengths[document]}", hint=_REMAKE)
        try:
            return np.array(ids, np.int64)
        except OverflowError:
            top = max(map(abs, ids))
            raise self._error(document, f"{top} is no token id: it does not fit into 64 bits") from None

    def _check_meta(self, size: int) -> None:
        if not len(self):
            if size:
                raise DataError(
                    f"it lists no document of {self.path.name} ({size} bytes)", file=meta_path(self.path), hint=_REMAKE
                )
            return
        if int(self.offsets.min()) < 0 or int(self.lengths.min()) < 0:
            raise DataError(
                "negative offsets: 32-bit numbers overflowed when it was written",
                file=meta_path(self.path),
                hint=_REMAKE,
            )
        if int(self.offsets.max()) >= size:
            raise DataError(
                f"offset {int(self.offsets.max())} is past the end of {self.path.name} ({size} bytes)",
                file=meta_path(self.path),
                hint=_REMAKE,
            )
        # A token is a byte at least, whatever stands between two of them.
        if (longest := int(self.lengths.max())) > size or int(self.lengths.sum()) > size:
            raise DataError(
                f"it says {max(longest, int(self.lengths.sum()))} tokens of {self.path.name} ({size} bytes)",
                file=meta_path(self.path),
                hint=_REMAKE,
            )
        if self._bytes[-1:] != b"\n":
            raise self._error(len(self) - 1, "the last line has no end: the file was cut off")

    def _error(self, document: int, message: str, hint: str | None = None) -> DataError:
        return DataError(message, file=self.path, line=document + 1, hint=hint)


_REMAKE = "the .bin and its meta do not belong together: tokenize the raw file again"


def open_token_file(path: Path) -> BinaryIO:
    """A ``.bin``, to be read.

    Raises:
        DataError: it is not there, no file, or not readable.
    """
    try:
        # A pipe would wait for somebody to write into it.
        if path.exists() and not path.is_file():
            raise DataError("a token file is expected here, and this is none", file=path)
        return path.open("rb")
    except FileNotFoundError:
        raise DataError("there is no such token file", file=path) from None
    except OSError as error:
        raise DataError(f"it cannot be read ({error.strerror})", file=path) from None


def read_meta(path: Path) -> np.ndarray:
    """The meta as int64 [documents, columns >= 2].

    Raises:
        DataError: it is missing, no ``.npy``, holds something else, or says that it is longer than the file.
    """
    return np.array(map_meta(path), np.int64)


def map_meta(path: Path) -> np.ndarray:
    """The meta as it lies in its file, mapped into memory: integers [documents, columns >= 2] of any width.

    Raises:
        DataError: as `read_meta`.
    """
    if path.exists() and not path.is_file():
        raise DataError("not a readable .npy file (it is no file)", file=path, hint=_REMAKE)
    try:
        # Mapped, so that a header that lies about the shape costs no memory.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(mapped, np.memmap):
            mapped.close()
            raise ValueError("it is an .npz")
        if (more := path.stat().st_size - mapped.offset - mapped.nbytes) and mapped.size:
            raise ValueError(f"{more} bytes follow the {list(mapped.shape)} numbers of its header")
    except FileNotFoundError:
        raise DataError("a .bin needs its .bin.meta beside it", file=path, hint=_REMAKE) from None
    except Exception as error:  # numpy's errors for what a header can hold are of many kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"not a readable .npy file ({reason})", file=path, hint=_REMAKE) from None
    if mapped.size == 0:
        return np.zeros((0, 2), np.int64)
    if mapped.ndim != 2 or mapped.shape[1] < 2 or not np.issubdtype(mapped.dtype, np.integer):
        raise DataError(
            f"expected integers [documents, 2], not {mapped.dtype} {list(mapped.shape)}", file=path, hint=_REMAKE
        )
    return mapped


def _parse_ids(text: bytes) -> np.ndarray:
    """Comma-separated integers, int64, three times as fast as JSON; without any if something else is there."""
    if not text or text.translate(None, b"0123456789, -"):
        return np.zeros(0, np.int64)
    try:
        return np.fromstring(text, dtype=np.int64, sep=",")
    except ValueError:
        return np.zeros(0, np.int64)

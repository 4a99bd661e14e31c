"""Documents in raw text files: ``.txt``, ``.jsonl`` and ``.json``, plain or compressed (``.gz``, ``.zst``).

Two readings of a file:

- text: a ``.txt`` file has a document per line that is not blank, stripped; ``.jsonl`` and ``.json`` (a list of
  records) give the named fields of each record.
- internevo: what the original tool feeds to its tokenizer. ``.txt`` as above; each ``.jsonl`` line whole with
  its newline; each record of a ``.json`` list written again by ``json.dumps``.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson

from evo_core.errors import DataError

Mode = Literal["text", "internevo"]
OnError = Literal["raise", "skip"]

FORMATS = (".txt", ".jsonl", ".json")
COMPRESSIONS = (".gz", ".zst")

_CHUNK = 1 << 20


class DocumentReader(Iterator[str]):
    """Iterates over the documents of one file.

    Attributes:
        skipped: records left out so far because they were wrong (with ``on_error="skip"``).
        first_error: what was wrong with the first of them.
    """

    def __init__(
        self,
        path: str | Path,
        text_keys: Sequence[str] = ("text",),
        *,
        mode: Mode = "text",
        on_error: OnError = "raise",
    ) -> None:
        self.path = Path(path)
        self.skipped = 0
        self.first_error: DataError | None = None
        self._text_keys = tuple(text_keys)
        self._on_error = on_error
        self._documents = self._open(mode)

    def __next__(self) -> str:
        return next(self._documents)

    def _open(self, mode: Mode) -> Iterator[str]:
        kind = file_format(self.path)
        if not self.path.is_file():
            raise DataError("there is no such file", file=self.path)
        if kind == ".txt":
            return self._text_lines()
        if kind == ".jsonl":
            return self._whole_lines() if mode == "internevo" else self._json_lines()
        return self._json_list(json.dumps if mode == "internevo" else self._text_of)

    def _text_lines(self) -> Iterator[str]:
        for number, line in _lines(self.path):
            if (text := self._decode(line, number)) is not None and (text := text.strip()):
                yield text

    def _whole_lines(self) -> Iterator[str]:
        for number, line in _lines(self.path):
            if (text := self._decode(line, number)) is not None:
                yield text

    def _json_lines(self) -> Iterator[str]:
        for number, line in _lines(self.path):
            if not line.strip() or self._decode(line, number) is None:
                continue
            try:
                text = self._text_of(orjson.loads(line))
            except orjson.JSONDecodeError as error:
                self._reject(f"not JSON, or cut off ({error})", line=number)
            except _BadRecordError as error:
                self._reject(str(error), line=number)
            else:
                if text.strip():
                    yield text

    def _json_list(self, text_of: Callable[[Any], str]) -> Iterator[str]:
        content = b"".join(_chunks(self.path)).removeprefix(_BOM)
        try:
            records = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            # Nothing of the file can be told apart, so there is nothing to skip to.
            raise DataError(f"not JSON, or cut off ({error.msg})", file=self.path, line=error.lineno) from None
        if not isinstance(records, list):
            raise DataError("expected a list of records", file=self.path, hint="or name it .jsonl")
        for number, record in enumerate(records, 1):
            try:
                text = text_of(record)
            except _BadRecordError as error:
                self._reject(f"record {number}: {error}")
            else:
                if text.strip():
                    yield text

    def _text_of(self, record: Any) -> str:
        """The named fields of a record, joined by newlines."""
        if not isinstance(record, dict):
            raise _BadRecordError(f"expected an object with the field {self._text_keys[0]!r}")
        texts = []
        for key in self._text_keys:
            if key not in record:
                fields = ", ".join(map(repr, list(record)[:8])) or "none"
                raise _BadRecordError(f"there is no field {key!r} (its fields: {fields})")
            if not isinstance(record[key], str):
                raise _BadRecordError(f"the field {key!r} is not text")
            texts.append(record[key])
        return "\n".join(texts)

    def _decode(self, line: bytes, number: int) -> str | None:
        """The line as text; None if it is not UTF-8 and such lines are skipped."""
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self._reject(f"not UTF-8 at byte {error.start} of the line", line=number)
            return None

    def _reject(self, message: str, line: int | None = None) -> None:
        error = DataError(message, file=self.path, line=line)
        if self._on_error == "raise":
            raise error
        self.skipped += 1
        self.first_error = self.first_error or error


def read_documents(
    path: str | Path, text_keys: Sequence[str] = ("text",), *, mode: Mode = "text", on_error: OnError = "raise"
) -> DocumentReader:
    """The documents of a file, in its order; documents without text are passed over.

    Args:
        path: a file named ``*.txt``, ``*.jsonl`` or ``*.json``, optionally with ``.gz`` or ``.zst`` behind it.
        text_keys: the fields of a record that make its document, joined by newlines; each must be there.
        mode: ``text`` or ``internevo`` (see the module).
        on_error: whether a wrong record ends the reading or is left out and counted. A file that cannot be
            read on (a broken archive, a ``.json`` that does not parse) always ends it.

    Raises:
        DataError: naming file and line.
    """
    return DocumentReader(path, text_keys, mode=mode, on_error=on_error)


def file_format(path: str | Path) -> str:
    """``.txt``, ``.jsonl`` or ``.json``, from a file's name.

    Raises:
        DataError: another name.
    """
    name = Path(path).name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    kind = Path(name).suffix
    if kind not in FORMATS:
        known = ", ".join(FORMATS)
        raise DataError(f"no format is known by this name; known: {known}, also with .gz or .zst behind", file=path)
    return kind


class _BadRecordError(Exception):
    """A record that is JSON but no document."""


_BOM = b"\xef\xbb\xbf"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with ``\\n`` at its end, whatever the file ends its lines with)."""
    number = 0
    for whole_line in _split(_chunks(path)):
        # Returns end a line as well, as in Python's text files, which the original tool reads through.
        for line in _split_at_returns(whole_line):
            number += 1
            yield number, line.removeprefix(_BOM) if number == 1 else line


def _split(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines with their newline; the last one has one only if the file ends in it."""
    begun: list[bytes] = []
    for chunk in chunks:
        head, newline, tail = chunk.rpartition(b"\n")
        if newline:
            yield from (line + b"\n" for line in b"".join([*begun, head]).split(b"\n"))
            begun = []
        begun.append(tail)
    if last := b"".join(begun):
        yield last


def _split_at_returns(line: bytes) -> list[bytes]:
    if b"\r" not in line:
        return [line]
    return line.replace(b"\r\n", b"\n").replace(b"\r", b"\n").splitlines(keepends=True)


def _chunks(path: Path) -> Iterator[bytes]:
    """The file's bytes, decompressed.

    Raises:
        DataError: the archive is broken or ends early.
    """
    try:
        if path.name.lower().endswith(".zst"):
            yield from _zstd_chunks(path)
            return
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except EOFError:
        raise DataError("the archive is cut off", file=path) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"not a readable .gz archive ({error})", file=path) from None


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    import zstandard

    # Frame by frame, since the library's own file object takes a file that is cut off for a complete one.
    frame = None
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield frame.decompress(data)
                except zstandard.ZstdError as error:
                    raise DataError(f"not a readable .zst archive ({error})", file=path) from None
                data = b""
                if frame.eof:
                    data, frame = frame.unused_data, None
    if frame is not None:
        raise DataError("the archive is cut off", file=path)

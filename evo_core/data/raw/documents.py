"""Documents in raw files: ``.txt``, ``.jsonl``, ``.json``, plain or packed (``.gz``, ``.zst``), and ``.parquet``.

Two readings of a file:

- text: a ``.txt`` file has a document per line that is not blank, stripped; ``.jsonl``, ``.json`` (a list of
  records, or one record) and ``.parquet`` give the named fields of each record: texts, or lists of lines.
- internevo: what InternEvo's tool feeds to its tokenizer. ``.txt`` as above; each ``.jsonl`` line whole with
  its newline; each record of a ``.json`` list written again by ``json.dumps``.

A file may be on disk or in an object store (`evo_core.storage.files`). Memory does not grow with its size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from evo_core.data.raw.bytes import COMPRESSIONS, chunks, compression
from evo_core.data.raw.json_list import JsonListError, read_json_list
from evo_core.data.raw.json_value import HALF_CHARACTER, is_whole, parse
from evo_core.data.raw.lines import ByteRange, Line, lines, lines_before
from evo_core.data.raw.parquet import ParquetRecords
from evo_core.data.raw.unreadable import UnreadableRecord
from evo_core.errors import DataError
from evo_core.storage.files import file_size
from evo_core.storage.location import Location, file_name

Mode = Literal["text", "internevo"]
OnError = Literal["raise", "skip"]

FORMATS = (".txt", ".jsonl", ".json", ".parquet")

MAX_RECORD_BYTES = 16 << 20
"""A line or a record that is longer is taken for a mistake: a file without newlines, say. To tokenize a text takes up
to 120 times its size in memory."""


class DocumentReader(Iterator[str]):
    """Iterates over the documents of one file.

    Attributes:
        skipped: records left out so far because they were wrong (with ``on_error="skip"``).
        first_error: what was wrong with the first of them.
        blank: records passed over so far because their text is null or blank.
        type: the data type that the record of the document given last names; None without a type_key.
        done: the share of the file, or of the range, that is read so far, 0 to 1.
    """

    def __init__(
        self,
        path: Location,
        text_keys: Sequence[str] = ("text",),
        *,
        mode: Mode = "text",
        on_error: OnError = "raise",
        type_key: str | None = None,
        byte_range: ByteRange | None = None,
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> None:
        self.path = path
        self.skipped = self.blank = 0
        self.first_error: DataError | None = None
        self.type: str | None = None
        self._text_keys, self._type_key = tuple(text_keys), type_key
        self._on_error, self._range, self._limit = on_error, byte_range, max_record_bytes
        self._lines_before: int | None = None
        self._read = 0.0
        self._documents = self._open(mode)

    def __next__(self) -> str:
        return next(self._documents)

    @property
    def done(self) -> float:
        return min(self._read / max(self._size, 1), 1.0)

    def _open(self, mode: Mode) -> Iterator[str]:
        kind = file_format(self.path)
        self._size = file_size(self.path) if self._range is None else self._range[1] - self._range[0]
        if self._type_key is not None and (kind == ".txt" or mode == "internevo"):
            what = "lines of text have" if kind == ".txt" else "mode internevo reads"
            raise DataError(f"{what} no fields to take a type from", file=self.path, key="type_key")
        if self._size == 0 and self._range is None:
            self._reject("the file is empty")
            return iter(())
        if kind == ".txt":
            return self._text_lines()
        if kind == ".jsonl":
            return self._whole_lines() if mode == "internevo" else self._json_lines()
        if kind == ".json":
            return self._json_list(mode)
        if mode == "internevo":
            raise DataError("InternEvo reads .txt, .json and .jsonl alone", file=self.path, hint="use mode text")
        return self._parquet()

    def _text_lines(self) -> Iterator[str]:
        for line in self._lines():
            if (text := self._decode(line)) is not None and (text := text.strip()):
                yield text

    def _whole_lines(self) -> Iterator[str]:
        for line in self._lines():
            if (text := self._decode(line)) is not None:
                yield text

    def _json_lines(self) -> Iterator[str]:
        for line in self._lines():
            if line.content is not None and line.content.isspace():
                continue
            try:
                # What is no line of text (None) is no JSON either.
                text = self._text_of(parse(line.content or b""))
            except ValueError as error:
                if self._decode(line) is not None:
                    self._reject(f"not JSON, or cut off ({error})", line=line.number)
            except _BadRecordError as error:
                self._reject(str(error), line=line.number)
            else:
                yield from self._unless_blank(text)

    def _json_list(self, mode: Mode) -> Iterator[str]:
        for number, record in enumerate(read_records(self.path, max_record_bytes=self._limit, on_bytes=self._count), 1):
            yield from self._record(number, record, mode)

    def _parquet(self) -> Iterator[str]:
        columns = [*self._text_keys, *([self._type_key] if self._type_key is not None else [])]
        records = ParquetRecords(self.path, list(dict.fromkeys(columns)))
        for number, record in enumerate(records, 1):
            self._read = self._size * number / records.rows
            yield from self._record(number, record, "text")

    def _record(self, number: int, record: Any, mode: Mode) -> Iterator[str]:
        try:
            if isinstance(record, UnreadableRecord):
                raise _BadRecordError(record.message)
            text = _dumped(record) if mode == "internevo" else self._text_of(record)
        except _BadRecordError as error:
            self._reject(f"record {number}: {error}")
        else:
            yield from self._unless_blank(text)

    def _unless_blank(self, text: str) -> Iterator[str]:
        if text and not text.isspace():
            yield text
        else:
            self.blank += 1

    def _lines(self) -> Iterator[Line]:
        return lines(self.path, limit=self._limit, byte_range=self._range, on_bytes=self._count)

    def _count(self, size: int) -> None:
        self._read += size

    def _text_of(self, record: Any) -> str:
        """The named fields of a record, joined by newlines; notes its type."""
        if not isinstance(record, dict):
            raise _BadRecordError(f"expected an object with the field {self._text_keys[0]!r}")
        texts = [text for key in self._text_keys if (text := self._text_field(record, key)) is not None]
        if self._type_key is not None:
            self.type = self._field(record, self._type_key)
            if not self.type.strip():
                raise _BadRecordError(f"the field {self._type_key!r} names no type")
        return texts[0] if len(texts) == 1 else "\n".join(texts)

    @classmethod
    def _text_field(cls, record: dict[str, Any], key: str) -> str | None:
        """A field of text or of lines of text, which newlines join; None where it is null."""
        value = record.get(key, "")
        if value is None:
            return None
        if isinstance(value, list) and all(isinstance(line, str) for line in value):
            record = {key: "\n".join(value)}
        return cls._field(record, key)

    @staticmethod
    def _field(record: dict[str, Any], key: str) -> str:
        if key not in record:
            fields = ", ".join(map(repr, list(record)[:8])) or "none"
            raise _BadRecordError(f"there is no field {key!r} (its fields: {fields})")
        value = record[key]
        if not isinstance(value, str):
            raise _BadRecordError(f"the field {key!r} is not text")
        if not is_whole(value):
            raise _BadRecordError(f"{HALF_CHARACTER} in the field {key!r}")
        return value

    def _decode(self, line: Line) -> str | None:
        """The line as text; None if it cannot be one and such lines are skipped."""
        if line.content is None:
            self._reject(f"a line of more than {self._limit:,} bytes", line.number, hint="end documents by newlines")
            return None
        try:
            return line.content.decode()
        except UnicodeDecodeError as error:
            self._reject(f"not UTF-8 at byte {error.start} of the line", line=line.number)
            return None

    def _reject(self, message: str, line: int | None = None, hint: str | None = None) -> None:
        if self._on_error == "skip":
            self.skipped += 1
            if self.first_error is not None:
                return
        error = DataError(message, file=self.path, line=self._number_in_file(line), hint=hint)
        if self._on_error == "raise":
            raise error
        self.first_error = error

    def _number_in_file(self, line: int | None) -> int | None:
        if line is None or self._range is None:
            return line
        if self._lines_before is None:
            self._lines_before = lines_before(self.path, self._range[0], limit=self._limit)
        return line + self._lines_before


def read_documents(
    path: Location,
    text_keys: Sequence[str] = ("text",),
    *,
    mode: Mode = "text",
    on_error: OnError = "raise",
    type_key: str | None = None,
    byte_range: ByteRange | None = None,
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> DocumentReader:
    """The documents of a file, in its order; those whose text is null or blank are passed over.

    Args:
        path: a path or URI named ``*.txt``, ``*.jsonl``, ``*.json``, each optionally with ``.gz`` or ``.zst`` behind
            it, or ``*.parquet``.
        text_keys: the fields of a record that make its document, joined by newlines; each must be there.
        mode: ``text`` or ``internevo`` (see the module).
        on_error: whether a wrong record ends the reading or is left out and counted. A file that cannot be
            read on (a broken archive, a ``.json`` that does not parse) always ends it.
        type_key: the field of a record that names its data type.
        byte_range: only the lines that begin there; of a file for which `can_be_split` holds.
        max_record_bytes: longest line or record (of a ``.json``: characters); a longer one is wrong.

    Raises:
        DataError: naming file and line.
    """
    return DocumentReader(
        path,
        text_keys,
        mode=mode,
        on_error=on_error,
        type_key=type_key,
        byte_range=byte_range,
        max_record_bytes=max_record_bytes,
    )


def read_records(
    path: Location, *, max_record_bytes: int = MAX_RECORD_BYTES, on_bytes: Callable[[int], None] | None = None
) -> Iterator[Any]:
    """The records of a ``.json`` file: those of a list, or one or more behind each other.

    One that is nested too deeply to be read is an `UnreadableRecord`.

    Args:
        on_bytes: called with the bytes of the file that are read, piece by piece (still packed).

    Raises:
        DataError: it is not JSON from some point on; what comes before has been given then. Behind that
            point nothing can be told apart, so there is nothing to skip to.
    """
    try:
        for _, record in read_json_list(chunks(path, on_bytes=on_bytes), most_bytes=max_record_bytes):
            yield record
    except JsonListError as error:
        raise DataError(str(error), file=path, line=error.line, hint="or name it .jsonl") from None


def file_format(path: Location) -> str:
    """``.txt``, ``.jsonl``, ``.json`` or ``.parquet``, from a file's name.

    Raises:
        DataError: another name.
    """
    name = file_name(path).lower().removesuffix(compression(path))
    kind = Path(name).suffix
    if kind not in FORMATS or (kind == ".parquet" and compression(path)):
        known = ", ".join(FORMATS)
        raise DataError(
            f"no format is known by this name; known: {known}, also with {' or '.join(COMPRESSIONS)} behind (but "
            ".parquet)",
            file=path,
        )
    return kind


def has_format(path: Location) -> bool:
    """Whether a file's name says a format."""
    try:
        file_format(path)
    except DataError:
        return False
    return True


def can_be_split(path: Location) -> bool:
    """Whether ranges of its bytes can be read apart from one another: plain files of lines."""
    return not compression(path) and file_format(path) in (".txt", ".jsonl")


def _dumped(record: Any) -> str:
    try:
        return json.dumps(record)
    except RecursionError:
        raise _BadRecordError("it is nested too deeply") from None


class _BadRecordError(Exception):
    """A record that is JSON but no document."""

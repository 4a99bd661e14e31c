"""Records in files: ``.jsonl`` and ``.json`` (a list of records), plain or compressed, and ``.parquet``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evo_core.data.raw.bytes import COMPRESSIONS
from evo_core.data.raw.documents import OnError, file_format, read_documents, read_records
from evo_core.data.raw.json_value import parse
from evo_core.data.raw.listing import EMPTY, OTHER_FORMAT, Listing, find_files, list_folder
from evo_core.data.raw.parquet import ParquetRecords
from evo_core.data.raw.patterns import MAGIC
from evo_core.data.raw.unreadable import UnreadableRecord
from evo_core.errors import DataError
from evo_core.storage.location import Location, is_remote, local_path

_SUFFIXES = (".jsonl", ".json")
RECORD_FILES = (".parquet", *_SUFFIXES, *(suffix + packed for suffix in _SUFFIXES for packed in COMPRESSIONS))


@dataclass(frozen=True)
class RecordPosition:
    """Where a record stands: a line of a ``.jsonl``, or the n-th record of another file, from 1."""

    file: Path
    number: int
    is_line: bool

    def error(self, message: str) -> DataError:
        """What is wrong with this record."""
        if self.is_line:
            return DataError(message, file=self.file, line=self.number)
        return DataError(f"record {self.number}: {message}", file=self.file)


class RecordReader(Iterator[tuple[RecordPosition, Any]]):
    """Iterates over the records of one file, in its order; blank lines are passed over.

    Attributes:
        skipped: records left out so far because they could not be read (with ``on_error="skip"``).
        first_error: what was wrong with the first of them.
        done: the share of the file read so far, 0 to 1; it stays 0 for a compressed ``.jsonl``.

    Raises:
        DataError: the file's name says no format, or it cannot be read; with ``on_error="raise"`` also a line that
            is no JSON, or a row that cannot be read.
    """

    def __init__(self, path: Path, *, on_error: OnError = "raise") -> None:
        self.path = path
        self.skipped = 0
        self.first_error: DataError | None = None
        self.done = 0.0
        self._on_error = on_error
        if path.name.lower().endswith(".parquet"):
            self._records = self._rows()
        else:
            self._records = self._lines() if _kind(path) == ".jsonl" else self._list()

    def __next__(self) -> tuple[RecordPosition, Any]:
        return next(self._records)

    # The internevo reading gives every line of a .jsonl.

    def _lines(self) -> Iterator[tuple[RecordPosition, Any]]:
        texts = read_documents(self.path, mode="internevo", on_error=self._on_error)
        size = self.path.stat().st_size if self.path.suffix.lower() == ".jsonl" else 0
        lines = read = 0
        for text in texts:
            lines, read = lines + 1, read + len(text.encode())
            self.done = read / size if size else 0.0
            if text.strip():
                yield from self._parsed(text, RecordPosition(self.path, lines + texts.skipped, is_line=True))
        self.skipped += texts.skipped
        self.first_error = self.first_error or texts.first_error

    def _list(self) -> Iterator[tuple[RecordPosition, Any]]:
        size = self.path.stat().st_size if self.path.suffix.lower() == ".json" else 0
        read = 0

        def on_bytes(more: int) -> None:
            nonlocal read
            read += more

        for number, record in enumerate(read_records(self.path, on_bytes=on_bytes), 1):
            self.done = read / size if size else 0.0
            yield from self._readable(number, record)

    def _parsed(self, text: str, position: RecordPosition) -> Iterator[tuple[RecordPosition, Any]]:
        try:
            record = parse(text)
        except ValueError as error:
            self._reject(position.error(f"not JSON, or cut off ({error})"))
        else:
            yield position, record

    def _rows(self) -> Iterator[tuple[RecordPosition, Any]]:
        records = ParquetRecords(self.path)
        for number, record in enumerate(records, 1):
            self.done = number / records.rows
            yield from self._readable(number, record)

    def _readable(self, number: int, record: Any) -> Iterator[tuple[RecordPosition, Any]]:
        position = RecordPosition(self.path, number, is_line=False)
        if isinstance(record, UnreadableRecord):
            self._reject(position.error(record.message))
        else:
            yield position, record

    def _reject(self, error: DataError) -> None:
        if self._on_error == "raise":
            raise error
        self.skipped += 1
        self.first_error = self.first_error or error


def find_records(location: Location) -> Listing:
    """The files of records that a path, a folder or a pattern means; empty ones hold none and are left out.

    Raises:
        DataError: nothing is there, all is empty, or it is in a store.
    """
    if is_remote(location):
        hint = "copy it here, or run the steps source.files and data.tokenize_sft"
        raise DataError("this command reads files of this machine", file=location, hint=hint)
    path = local_path(location)
    if path.is_file() and not path.name.lower().endswith(RECORD_FILES):
        raise DataError(f"not a file of records; known: {', '.join(RECORD_FILES)}", file=path)
    if not path.exists() and MAGIC.search(str(path)) is None:
        raise DataError("there is no such file of records", file=path)
    found = list_folder(path) if path.is_dir() else find_files(location)
    found = found.only(lambda file: file.path.lower().endswith(RECORD_FILES), OTHER_FORMAT).check_names()
    if not found.files:
        raise DataError(f"there is no file of records here; known: {', '.join(RECORD_FILES)}", file=path)
    records = found.only(lambda file: file.size > 0, EMPTY)
    if not records.files:
        raise DataError("the file is empty", file=found.files[0].uri)
    return records


def record_files(location: Location) -> list[Path]:
    """The paths of `find_records`."""
    return [Path(file.uri) for file in find_records(location).files]


def _kind(path: Path) -> str:
    kind = file_format(path)
    if kind not in _SUFFIXES:
        raise DataError(f"not a file of records; known: {', '.join(RECORD_FILES)}", file=path)
    return kind

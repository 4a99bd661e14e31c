"""The records of a Parquet file, a few at a time.

A value that Python cannot hold (a date in the year 12000, text that is no UTF-8) spoils its own record alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from evo_core.data.raw.unreadable import UnreadableRecord
from evo_core.errors import DataError
from evo_core.storage.files import open_file
from evo_core.storage.location import Location

if TYPE_CHECKING:
    from pyarrow import RecordBatch

# Few enough that a batch of long documents is small.
_ROWS = 256
_BUFFER_BYTES = 1 << 20


class ParquetRecords(Iterator[dict[str, Any] | UnreadableRecord]):
    """Iterates over the rows of a file.

    Attributes:
        rows: how many there are.

    Args:
        columns: the ones to read; None reads all.

    Raises:
        DataError: pyarrow is not installed, or the file is not readable or has no such column.
    """

    def __init__(self, location: Location, columns: Sequence[str] | None = None) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise DataError(
                "Parquet files need the package pyarrow", file=location, hint="pip install pyarrow"
            ) from None
        self._location, self._broken = location, (pyarrow.ArrowException, OSError, UnicodeDecodeError)
        self._file = open_file(location)
        try:
            # A column is read through a buffer as it is needed: row groups may be larger than memory.
            self._table = pyarrow.parquet.ParquetFile(self._file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        except self._broken as error:
            self._file.close()
            raise self._unreadable(error) from None
        names = self._table.schema_arrow.names
        for column in columns or ():
            if column not in names:
                raise DataError(
                    f"there is no column {column!r} (its columns: {', '.join(map(repr, names[:8]))})", file=location
                )
        self.rows = self._table.metadata.num_rows
        self._records = self._read(list(columns) if columns is not None else None)

    def __next__(self) -> dict[str, Any] | UnreadableRecord:
        return next(self._records)

    def _read(self, columns: list[str] | None) -> Iterator[dict[str, Any] | UnreadableRecord]:
        try:
            with self._file, self._table:
                for batch in self._table.iter_batches(_ROWS, columns=columns):
                    yield from _rows(batch)
        except self._broken as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"not a readable Parquet file ({error})", file=self._location)


def _rows(batch: RecordBatch) -> list[Any]:
    try:
        return batch.to_pylist()
    except Exception:  # each type of a column fails in its own way
        return [_row(batch.slice(number, 1)) for number in range(batch.num_rows)]


def _row(row: RecordBatch) -> dict[str, Any] | UnreadableRecord:
    record = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            (record[name],) = column.to_pylist()
        except Exception as error:
            return UnreadableRecord(f"the column {name!r} holds what cannot be read ({error})")
    return record

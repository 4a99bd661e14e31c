"""Digests of files: computed once, remembered for as long as the file stays as it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evo_core.storage.files import replacing

CHUNK = 1 << 20


@dataclass(frozen=True)
class FileDigest:
    """What is known of one file: blake3 of its bytes (hex), bytes, and how many lines it holds."""

    digest: str
    size: int
    lines: int


def digest_file(path: Path) -> FileDigest:
    """Read `path` once for its digest and line count."""
    from blake3 import blake3

    hasher, lines, last = blake3(), 0, b"\n"
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return FileDigest(hasher.hexdigest(), path.stat().st_size, lines + (last != b"\n"))


class DigestMemory:
    """Digests remembered by (path, size, modification time in ns), in a parquet inventory of the store.

    A second look at an unchanged folder then costs one `stat` a file. Losing the inventory loses time, nothing else.
    """

    COLUMNS = ("path", "size", "mtime_ns", "digest", "lines")

    def __init__(self, inventory: Path) -> None:
        self.inventory = inventory
        self._known: dict[str, tuple[int, int, str, int]] = {}
        self._new = False
        if inventory.exists():
            self._read()

    def of(self, path: Path) -> FileDigest:
        """Digest of `path`, from memory when the file has not changed since."""
        stat = path.stat()
        return self.of_listed(str(path), stat.st_size, stat.st_mtime_ns)

    def of_listed(self, path: str, size: int, mtime_ns: int) -> FileDigest:
        """The same for a file whose size and modification time have just been looked at."""
        known = self._known.get(path)
        if known is None or known[:2] != (size, mtime_ns):
            found = digest_file(Path(path))
            self._known[path] = size, mtime_ns, found.digest, found.lines
            self._new = True
            return found
        return FileDigest(known[2], size, known[3])

    def save(self) -> None:
        """Write the inventory, if it learned anything."""
        if not self._new:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = [list(self._known), *map(list, zip(*self._known.values(), strict=True))]
        types = (pa.string(), pa.int64(), pa.int64(), pa.string(), pa.int64())
        arrays = [pa.array(column, type_) for column, type_ in zip(columns, types, strict=True)]
        table = pa.Table.from_arrays(arrays, names=self.COLUMNS)
        with replacing(self.inventory, durable=False) as draft:
            pq.write_table(table, draft)
        self._new = False

    def _read(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.inventory) as file:  # `read_table` would import pandas, in seconds
                columns = file.read().to_pydict()
            known = zip(*(columns[name] for name in self.COLUMNS[1:]), strict=True)
            self._known = dict(zip(columns["path"], known, strict=True))
        except (pa.ArrowInvalid, OSError, KeyError):
            return  # a damaged inventory is only forgotten digests


def combine(parts: Iterable[tuple[str, str]]) -> str:
    """One sha256 (hex) over (name, digest) pairs, in the order of the names."""
    import hashlib

    hasher = hashlib.sha256()
    for name, digest in sorted(parts):
        hasher.update(f"{name}\0{digest}\n".encode())
    return hasher.hexdigest()

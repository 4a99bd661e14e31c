"""Records written to a folder as JSON Lines, in parts of a size that several processes can share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import orjson

from evo_core.storage.files import write_file

_FILE_BYTES = 256 << 10


def write_parts(folder: Path, records: Iterable[Mapping[str, str]], max_bytes: int) -> int:
    """Write ``<folder>/part_000.jsonl``, … from the first records, with at most `max_bytes` in all.

    Returns:
        Bytes written; fewer than asked where there are no more records.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = number = 0
    part: list[bytes] = []

    def close_part() -> None:
        nonlocal number
        write_file(folder / f"part_{number:03d}.jsonl", b"".join(part))
        number += 1
        part.clear()

    for record in records:
        line = orjson.dumps(record) + b"\n"
        if written + len(line) > max_bytes:
            if written > 0.9 * max_bytes:
                break
            continue  # a long one; shorter ones still fit
        part.append(line)
        written += len(line)
        if sum(map(len, part)) >= _FILE_BYTES:
            close_part()
    if part:
        close_part()
    return written

"""Parts of a file of several blocks: each block read once, in memory that is used again, and compared first."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest

from evo_core.checkpoint.blocks import BlockReader, Span
from evo_core.checkpoint.records import BLOCK, Digests, FileRecord
from evo_core.errors import DamagedError

SIZE = 3 * BLOCK + 12345


@cache
def random_content() -> bytes:
    return random.Random(1).randbytes(SIZE)


def written(path: Path) -> tuple[bytes, FileRecord]:
    content = random_content()
    path.write_bytes(content)
    digests = Digests()
    digests.update(memoryview(content))
    return content, digests.record()


SPANS: dict[str, list[Span]] = {
    "inside of blocks": [(5, 1000), (1005, 1), (BLOCK + 7, 2000), (3 * BLOCK, 12345)],
    "over borders": [(0, 10), (BLOCK - 5, 10), (BLOCK + 5, 2 * BLOCK), (3 * BLOCK + 9, 100)],
    "all of it": [(0, SIZE)],
    "blocks themselves": [(0, BLOCK), (BLOCK, BLOCK), (3 * BLOCK, 12345)],
}


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS)
@pytest.mark.parametrize("vouched", [True, False])
def test_spans_are_what_lies_there(tmp_path: Path, spans: list[Span], vouched: bool) -> None:
    content, record = written(tmp_path / "file")
    with BlockReader(tmp_path / "file", record if vouched else None, spans) as blocks:
        for start, length in spans:
            assert blocks.read(start, length) == content[start : start + length]


def test_what_is_damaged_is_not_given_out(tmp_path: Path) -> None:
    content, record = written(tmp_path / "file")
    with (tmp_path / "file").open("r+b") as file:
        file.seek(BLOCK + 3)
        file.write(bytes([content[BLOCK + 3] ^ 1]))
    spans = [(0, 10), (2 * BLOCK - 1, 1)]
    with BlockReader(tmp_path / "file", record, spans) as blocks:
        assert blocks.read(*spans[0]) == content[:10]
        with pytest.raises(DamagedError, match=f"bytes {BLOCK} to {2 * BLOCK} do not have the digest"):
            blocks.read(*spans[1])


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    written(tmp_path / "file")
    with (
        BlockReader(tmp_path / "file", None, [(3 * BLOCK, 20000)]) as blocks,
        pytest.raises(DamagedError, match="ends before byte"),
    ):
        blocks.read(3 * BLOCK, 20000)

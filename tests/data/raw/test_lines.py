"""Lines of a file and of ranges of its bytes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo_core.data.raw.documents import can_be_split, read_documents
from evo_core.data.raw.lines import lines, lines_before
from evo_core.errors import DataError

BIG = 1 << 20


def contents(path: Path, **options: object) -> list[bytes | None]:
    return [line.content for line in lines(path, **{"limit": BIG, **options})]  # type: ignore[arg-type]


@given(
    st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"x")), max_size=8),
    st.booleans(),
    st.lists(st.integers(0, 100), max_size=4),
    st.integers(1, 7),
)
def test_ranges_give_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, texts: list[bytes], ended: bool, cuts: list[int], chunk: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes(b"\n".join(texts) + (b"\n" if ended and texts else b""))
    size = path.stat().st_size
    edges = sorted({0, size, *(min(cut, size) for cut in cuts)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evo_core.data.raw.bytes.CHUNK", chunk)
        whole = contents(path)
        parts = [contents(path, byte_range=pair) for pair in pairwise(edges)]
    assert [line for part in parts for line in part] == whole
    for start, part in zip(edges, parts, strict=False):
        at = whole.index(part[0]) if part and whole.count(part[0]) == 1 else None
        if at is not None and b"\r" not in path.read_bytes():
            assert lines_before(path, start, limit=BIG) == at


def test_a_line_that_is_too_long_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evo_core.data.raw.bytes.CHUNK", 4)
    path = tmp_path / "a.txt"
    path.write_bytes(b"ab\n" + b"x" * 50 + b"\ncd\n" + b"y" * 11)
    assert contents(path, limit=10) == [b"ab\n", None, b"cd\n", None]


def test_the_error_of_a_range_names_the_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = b'{"text": "a"}\n'
    path.write_bytes(good * 5 + b"oops\n" + good)
    with pytest.raises(DataError, match=r"a\.jsonl:6: not JSON"):
        list(read_documents(path, byte_range=(len(good) * 3 + 2, path.stat().st_size)))
    reader = read_documents(path, byte_range=(len(good) * 3 + 2, path.stat().st_size), on_error="skip")
    assert list(reader) == ["a", "a"]
    assert reader.first_error is not None
    assert reader.first_error.line == 6


def test_a_huge_line_is_an_error_or_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n" + b"x" * 3000 + b"\ngood\n")
    with pytest.raises(DataError, match=r"a\.txt:2: a line of more than 1,000 bytes"):
        list(read_documents(path, max_record_bytes=1000))
    reader = read_documents(path, max_record_bytes=1000, on_error="skip")
    assert list(reader) == ["good", "good"]
    assert reader.skipped == 1


@pytest.mark.parametrize(
    ("name", "can"), [("a.txt", True), ("a.jsonl", True), ("a.json", False), ("a.jsonl.gz", False)]
)
def test_what_can_be_split(name: str, can: bool) -> None:
    assert can_be_split(name) is can

"""A JSON list read a record at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo_core.data.raw.documents import read_documents, read_records
from evo_core.data.sft.records import RecordReader
from evo_core.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "a.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@given(st.lists(VALUES, max_size=5), st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 9))
def test_it_gives_what_json_gives(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], indent: int | None, ascii_only: bool, chunk: int
) -> None:
    path = write(tmp_path_factory.mktemp("list"), json.dumps(values, indent=indent, ensure_ascii=ascii_only))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evo_core.data.raw.bytes.CHUNK", chunk)
        patch.setattr("evo_core.data.raw.json_list._WINDOW", chunk)
        assert list(read_records(path)) == values


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("", "expected a list", 1),
        (" \n", "expected a list", 2),
        ('{"a": 1},\n{"a": 2}', "not JSON", 2),
        ('{"a": 1}\n{"a": 2', "cut off", 2),
        ("[1,\n 2 3]", "expected , or ]", 2),
        ('[1,\n {"a": tru}]', "not JSON", 2),
        ('[1,\n\n "cut', "cut off", 3),
        ("[1, 2", "cut off", 1),
        ("[1]\n[2]", "text after the list", 2),
        (b'["\xff"]', "not UTF-8", 1),
        ("[1, " + "[" * 100_000, "cut off", 1),
        ('[1, {"a": ' + "[" * 100_000 + ']"]"', "cut off", 1),
        ('["x", ' + "[" * 100_000 + "]" * 100_000 + " 1]", "expected , or ] after a record", 1),
        ('["' + "x" * 5000 + '"]', "a record has more than 1,000 bytes", 1),
    ],
    ids=range(14),
)
def test_what_is_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, message: str, line: int | None
) -> None:
    monkeypatch.setattr("evo_core.data.raw.bytes.CHUNK", 64)
    monkeypatch.setattr("evo_core.data.raw.json_list._WINDOW", 64)
    with pytest.raises(DataError, match=message) as raised:
        list(read_records(write(tmp_path, text), max_record_bytes=1000 if "x" * 99 in str(text) else 1 << 20))
    assert raised.value.line == line


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
@pytest.mark.parametrize("values", [[{"text": "a"}], [{"text": "a", "n": [1, 2]}, {"text": "b"}, {"text": "c"}]])
def test_records_that_are_in_no_list(tmp_path: Path, values: list[Any], end: str) -> None:
    """One, or lines of them in a file that is named .json."""
    for indent in (None, 2):
        text = "\n".join(json.dumps(value, indent=indent) for value in values) + end
        for chunk in (1, 7, 1 << 20):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("evo_core.data.raw.bytes.CHUNK", chunk)
                patch.setattr("evo_core.data.raw.json_list._WINDOW", chunk)
                assert list(read_records(write(tmp_path, text))) == values


def test_numbers_that_python_reads(tmp_path: Path) -> None:
    text = '[{"a": NaN, "b": -Infinity, "c": 1e999, "d": ' + "9" * 5000 + '}, {"e": 3}]'
    first, second = read_records(write(tmp_path, text))
    assert first["a"] != first["a"] and (first["b"], first["c"], first["d"]) == (-math.inf, math.inf, math.inf)
    assert second == {"e": 3}


@pytest.mark.parametrize("window", [1 << 20, 1000])
def test_a_record_that_is_nested_too_deeply_spoils_no_other(
    window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evo_core.data.raw.json_list._WINDOW", window)
    monkeypatch.setattr("evo_core.data.raw.bytes.CHUNK", 777)
    deep = '{"text": "]}\\"[", "x": ' + '["]\\\\", ' * 20_000 + "0" + "]" * 20_000 + "}"
    path = write(tmp_path, '[{"text": "a"},\n' + deep + ',\n{"text": "b"}]')
    documents = read_documents(path, on_error="skip")
    assert list(documents) == ["a", "b"]
    assert documents.skipped == 1 and "record 2: it is nested too deeply" in str(documents.first_error)
    records = RecordReader(path, on_error="skip")
    assert [record for _, record in records] == [{"text": "a"}, {"text": "b"}] and records.skipped == 1
    with pytest.raises(DataError, match="record 2: it is nested too deeply"):
        list(read_documents(path))

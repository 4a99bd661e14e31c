"""A JSON list read a record at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo_core.data.documents import read_records
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
        patch.setattr("evo_core.data.raw_bytes.CHUNK", chunk)
        patch.setattr("evo_core.data.json_list._WINDOW", chunk)
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
        ("[1, " + "[" * 100_000, "nested too deeply", 1),
        ('["' + "x" * 5000 + '"]', "a record has more than 1,000 bytes", 1),
    ],
    ids=range(12),
)
def test_what_is_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, message: str, line: int | None
) -> None:
    monkeypatch.setattr("evo_core.data.raw_bytes.CHUNK", 64)
    monkeypatch.setattr("evo_core.data.json_list._WINDOW", 64)
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
                patch.setattr("evo_core.data.raw_bytes.CHUNK", chunk)
                patch.setattr("evo_core.data.json_list._WINDOW", chunk)
                assert list(read_records(write(tmp_path, text))) == values


def test_numbers_that_python_reads(tmp_path: Path) -> None:
    text = '[{"a": NaN, "b": -Infinity, "c": 1e999, "d": ' + "9" * 5000 + '}, {"e": 3}]'
    first, second = read_records(write(tmp_path, text))
    assert first["a"] != first["a"] and (first["b"], first["c"], first["d"]) == (-math.inf, math.inf, math.inf)
    assert second == {"e": 3}

"""Parquet files as raw text: only the columns asked for, row group by row group."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evo_core.data.raw.documents import read_documents
from evo_core.data.sft.records import RecordReader
from evo_core.data.tokenize.tokenize_file import TokenizeSpec, tokenize_file
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError
from tests.data.corpora import CHINESE, CODE, ENGLISH

TEXTS = [CHINESE, ENGLISH, CODE] * 400


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_the_documents_of_a_column(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"text": pa.array(TEXTS).cast(kind), "other": pa.array(range(len(TEXTS)))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=500)
    assert list(read_documents(tmp_path / "a.parquet")) == TEXTS


def test_it_makes_the_bin_of_the_same_jsonl(tmp_path: Path, tokenizer: Tokenizer) -> None:
    import json

    types = ["cn" if n % 3 == 0 else "en" for n in range(len(TEXTS))]
    pq.write_table(pa.table({"text": TEXTS, "lang": types}), tmp_path / "a.parquet", row_group_size=700)
    records = [{"text": text, "lang": name} for text, name in zip(TEXTS, types, strict=True)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    results = [
        tokenize_file(TokenizeSpec(raw, tmp_path / f"{raw.stem}.bin", tokenizer.path, type_key="lang"))
        for raw in (tmp_path / "a.parquet", tmp_path / "b.jsonl")
    ]
    assert results[0] == results[1]
    assert results[0].types["cn"][0] == 400
    for ending in ("", ".meta", ".types"):
        assert (tmp_path / f"a.bin{ending}").read_bytes() == (tmp_path / f"b.bin{ending}").read_bytes()


def test_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", None, "b"], "n": [1, 2, 3]}), path)
    reader = read_documents(path)
    assert list(reader) == ["a", "b"]
    assert (reader.skipped, reader.blank) == (0, 1)
    with pytest.raises(DataError, match="record 1: the field 'n' is not text"):
        list(read_documents(path, ("n",)))
    with pytest.raises(DataError, match=r"there is no column 'body' \(its columns: 'text', 'n'\)"):
        list(read_documents(path, ("body",)))
    with pytest.raises(DataError, match="reads"):
        read_documents(path, mode="internevo")
    bad = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    pq.write_table(pa.table({"text": bad}), path)
    with pytest.raises(
        DataError, match=r"a\.parquet: record 2: the column 'text' holds what cannot be read \(.*utf-?8"
    ):
        list(read_documents(path))
    reader = read_documents(path, on_error="skip")
    assert list(reader) == ["a"]
    assert reader.skipped == 1
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        list(read_documents(path))


def test_a_value_that_python_cannot_hold_spoils_its_own_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    dates = pa.array([0, 2**62, 5], pa.timestamp("us"))
    columns = {"text": ["a", "b", "c"], "at": dates, "n": [Decimal("1.5")] * 3, "raw": [b"x"] * 3, "in": [{"d": 1}] * 3}
    pq.write_table(pa.table(columns), path)
    assert list(read_documents(path)) == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"a\.parquet: record 2: the column 'at' holds what cannot be read"):
        list(RecordReader(path))
    reader = RecordReader(path, on_error="skip")
    assert [record["text"] for _, record in reader] == ["a", "c"]
    assert reader.skipped == 1 and "record 2" in str(reader.first_error)

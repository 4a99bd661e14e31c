"""Token files: exact bytes, nothing half-written, damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evo_core.data.format import BinReader, BinWriter, encode_line, meta_path
from evo_core.errors import DataError
from tests.data.corpora import read_bin, write_bin

DOCUMENTS = [[1, 2, 3], [0], [70000, -5, -0, 12]]


def test_bytes_are_what_the_original_writes(tmp_path: Path) -> None:
    path = tmp_path / "cn" / "train_000.bin"
    with BinWriter(path) as writer:
        for document in DOCUMENTS:
            writer.write(document)
    assert path.read_bytes() == b"".join(json.dumps({"tokens": d}).encode() + b"\n" for d in DOCUMENTS)
    meta = np.load(meta_path(path))
    assert meta.dtype == np.int64
    assert meta.tolist() == [[0, 3], [22, 1], [38, 4]]
    assert read_bin(path) == DOCUMENTS
    assert sorted(p.name for p in path.parent.iterdir()) == ["train_000.bin", "train_000.bin.meta"]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_arrays_are_written_like_lists(dtype: type) -> None:
    ids = np.arange(0, 1000, 7, dtype=dtype)
    assert encode_line(ids) == encode_line(ids.tolist()) == encode_line(np.repeat(ids, 2)[::2])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_reads_what_others_wrote(tmp_path: Path, dtype: type) -> None:
    reader = BinReader(write_bin(tmp_path / "x.bin", DOCUMENTS, meta_dtype=dtype))
    assert len(reader) == 3
    assert reader.lengths.tolist() == [3, 1, 4]
    assert [reader.tokens(i).tolist() for i in range(3)] == DOCUMENTS
    reader.check(70001)


def test_reads_json_written_with_other_spaces(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b'{"tokens":[1,2]}\n{ "tokens" : [ 3 ] , "more": 1 }\n')
    np.save(tmp_path / "meta.npy", np.array([[0, 2], [17, 1]], np.int32))
    (tmp_path / "meta.npy").rename(meta_path(path))
    assert [BinReader(path).tokens(i).tolist() for i in range(2)] == [[1, 2], [3]]


def test_an_empty_file_has_no_documents(tmp_path: Path) -> None:
    with BinWriter(tmp_path / "x.bin"):
        pass
    assert len(BinReader(tmp_path / "x.bin")) == 0
    assert len(BinReader(write_bin(tmp_path / "y.bin", []))) == 0


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with pytest.raises(KeyboardInterrupt), BinWriter(path) as writer:
        writer.write([1])
        assert not path.exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_never_meets_the_meta_of_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bin(tmp_path / "x.bin", [[1], [2]])
    seen = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        result = replace(self, target)
        seen.append((target.name, meta_path(path).exists()))
        return result

    monkeypatch.setattr(Path, "replace", watched)
    with BinWriter(path) as writer:
        writer.write([3, 4])
    assert seen == [("x.bin", False), ("x.bin.meta", True)]
    assert read_bin(path) == [[3, 4]]


def _write(path: Path, content: bytes, meta: object) -> None:
    path.write_bytes(content)
    with meta_path(path).open("wb") as file:
        np.save(file, np.array(meta))


LINE = b'{"tokens": [1, 2]}\n'

DAMAGED = {
    "no meta": (LINE, None, "needs its .bin.meta"),
    "meta past the end": (LINE, [[0, 2], [19, 2]], "past the end"),
    "overflowed meta": (LINE, [[-2147483648, 2]], "overflowed"),
    "meta of another shape": (LINE, [0, 2], r"expected integers \[documents, 2\]"),
    "meta of floats": (LINE, [[0.0, 2.0]], "expected integers"),
    "cut line": (LINE + LINE[:-4], [[0, 2], [19, 2]], "cut off"),
    "another count": (LINE, [[0, 3]], "2 tokens where the meta says 3"),
    "offset inside a line": (LINE, [[3, 2]], "not a JSON line"),
    "no tokens": (b'{"text": [1, 2]}\n', [[0, 2]], "expected"),
    "text as ids": (b'{"tokens": ["1", 2]}\n', [[0, 2]], "expected"),
    "fractions": (b'{"tokens": [1.5, 2]}\n', [[0, 2]], "expected"),
    "missing comma": (b'{"tokens": [1 2]}\n', [[0, 1]], "not a JSON line"),
    "trailing comma": (b'{"tokens": [1, 2, ]}\n', [[0, 2]], "not a JSON line"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    content, meta, message = DAMAGED[case]
    path = tmp_path / "x.bin"
    if meta is None:
        path.write_bytes(content)
    else:
        _write(path, content, meta)
    with pytest.raises(DataError, match=message) as raised:
        BinReader(path).check()
    assert "x.bin" in str(raised.value)


def test_no_file_and_no_npy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such token file"):
        BinReader(tmp_path / "x.bin")
    path = write_bin(tmp_path / "x.bin", DOCUMENTS)
    meta_path(path).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"not a readable \.npy"):
        BinReader(path)


def test_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    path = write_bin(tmp_path / "x.bin", [[1], [2, -9, 3]])
    BinReader(path).check(10)
    with pytest.raises(DataError, match="token id 9 is outside the vocabulary of 9") as raised:
        BinReader(path).check(9)
    assert (raised.value.file, raised.value.line) == (path, 2)

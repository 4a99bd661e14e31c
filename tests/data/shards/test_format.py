"""Token files: exact bytes, nothing half-written, damage is named."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from evo_core.data.corpus.token_cache import open_token_files
from evo_core.data.inspection.verify import verify
from evo_core.data.shards.format import BinReader, BinWriter, encode_line, meta_path
from evo_core.errors import DataError
from tests.data.corpora import read_bin, write_bin

DOCUMENTS = [[1, 2, 3], [0], [70000, -5, -0, 12]]


def test_bytes_are_what_internevo_writes(tmp_path: Path) -> None:
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


def header(shape: tuple[int, ...], kind: str = "<i8") -> bytes:
    """What a .npy file begins with."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, meta=np.zeros((3, 2), np.int64))
    return file.getvalue()


GOOD_META = np.array([[0, 3], [22, 1], [38, 4]], "<i8").tobytes()
BAD_METAS = {
    "an .npz": (archive(), "it is an .npz"),
    "objects": (header((3, 2), "|O") + GOOD_META, "not a readable"),
    "pickled": (pickle.dumps([[0, 3]]), "not a readable"),
    "more than there is": (header((4, 2)) + GOOD_META, "not a readable"),
    "much more": (header((10**12, 2)) + GOOD_META, "not a readable"),
    "more than a number": (header((10**30, 2)) + GOOD_META, "not a readable"),
    "negative": (header((-3, -2)) + GOOD_META, "not a readable"),
    "less than there is": (header((2, 2)) + GOOD_META, "16 bytes follow"),
    "nothing": (header((0, 2)), "it lists no document of x.bin"),
    "floats": (header((3, 2), "<f8") + GOOD_META, "expected integers"),
    "one column": (header((6,)) + GOOD_META, "expected integers"),
    "fields": (header((3,), [("a", "<i8"), ("b", "<i8")]) + GOOD_META, "expected integers"),  # type: ignore[arg-type]
    "brackets": (b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 15 + b"\n", "not a readable"),
    "cut": (header((3, 2))[:20], "not a readable"),
    "a length of its own": (
        header((1, 2)) + np.array([[0, 2**62]], "<i8").tobytes(),
        "it says 4611686018427387904 tokens",
    ),
    "lengths that are too many": (header((9, 2)) + np.array([[0, 40]] * 9, "<i8").tobytes(), "it says 360 tokens"),
}


@pytest.mark.parametrize("name", BAD_METAS)
def test_metas_that_are_none(name: str, tmp_path: Path) -> None:
    content, message = BAD_METAS[name]
    path = write_bin(tmp_path / "x.bin", DOCUMENTS)
    meta_path(path).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        BinReader(path)
    assert raised.value.file == meta_path(path) and "\n" not in str(raised.value)
    assert verify([path]).count


def test_token_files_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.bin").mkdir()
    os.mkfifo(tmp_path / "pipe.bin")
    (tmp_path / "link.bin").symlink_to(tmp_path / "nowhere")
    for name, message in (
        ("folder", "this is none"),
        ("pipe", "this is none"),
        ("link", "there is no such token file"),
    ):
        with pytest.raises(DataError, match=rf"{name}\.bin: .*{message}"):
            BinReader(tmp_path / f"{name}.bin")
        assert [problem.message for problem in verify([tmp_path / f"{name}.bin"]).problems]
    path = write_bin(tmp_path / "x.bin", DOCUMENTS)
    meta_path(path).unlink()
    meta_path(path).mkdir()
    with pytest.raises(DataError, match=r"x\.bin\.meta: not a readable \.npy file \(it is no file\)"):
        BinReader(path)


@pytest.mark.parametrize("token", [-(2**63), 2**63 - 1, -(2**31), 2**31, 2**64, -(2**80)])
def test_ids_that_no_model_has(token: int, tmp_path: Path) -> None:
    """Neither wrapped into one that it may have nor passed over."""
    path = write_bin(tmp_path / "x.bin", [[1, 2], [3, token, 4]])
    with pytest.raises(DataError, match=r"x\.bin:2: .*\d+"):
        BinReader(path).check(100)
    for in_memory in (True, False):
        with pytest.raises(DataError, match=r"x\.bin:2: .*\d+"):
            open_token_files([path], in_memory=in_memory)
    (problem,) = verify([path]).problems
    assert problem.line == 2

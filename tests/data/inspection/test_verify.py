"""Every damage is found, listed with file and line, and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evo_core.data.inspection.verify as module
from evo_core.data.inspection.verify import Report, verify
from evo_core.data.shards.format import BinWriter
from tests.data.corpora import write_bin

DOCUMENTS = [[1, 2, 3], [-4, -5, 6], [7], [8, 9], [10, 11, 12, 13]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_bin(tmp_path / "a.bin", DOCUMENTS)


def found(path: Path, **options: Any) -> list[str]:
    report = verify([path], **options)
    assert report.count == len(report.problems)
    return [str(problem).removeprefix(f"{path}") for problem in report.problems]


def test_what_is_right(tmp_path: Path, path: Path) -> None:
    with BinWriter(tmp_path / "ours.bin") as writer:
        writer.write([1, -2])
    with BinWriter(tmp_path / "empty.bin"):
        pass
    paths = [
        path,
        tmp_path / "ours.bin",
        tmp_path / "empty.bin",
        write_bin(tmp_path / "int32.bin", DOCUMENTS, meta_dtype=np.int32),
    ]
    assert verify(paths, vocab_size=14) == Report(files=4, documents=11, tokens=28)


def test_a_meta_in_another_order_is_right(path: Path) -> None:
    change_meta(path, lambda meta: meta[::-1])
    assert found(path, vocab_size=14) == []


def test_other_spellings_and_fields_are_right(tmp_path: Path) -> None:
    lines = [b'{"tokens":[1,2]}\n', b'{"id": "x", "tokens": [3]}\n', b'{"tokens": []}\n']
    (tmp_path / "a.bin").write_bytes(b"".join(lines))
    np.save(tmp_path / "meta.npy", np.array([[0, 2], [len(lines[0]), 1], [len(lines[0] + lines[1]), 0]]))
    (tmp_path / "meta.npy").rename(tmp_path / "a.bin.meta")
    assert found(tmp_path / "a.bin") == []


def change_meta(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    meta = change(np.load(f"{path}.meta"))
    with Path(f"{path}.meta").open("wb") as file:
        np.save(file, meta)


def cell(row: int, column: int, value: int) -> Callable[[Path], None]:
    def change(meta: np.ndarray) -> np.ndarray:
        meta[row, column] = value
        return meta

    return lambda path: change_meta(path, change)


def replaced(old: bytes, new: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new))


def without_lines(*rows: int) -> Callable[[Path], None]:
    return lambda path: change_meta(path, lambda meta: np.delete(meta, rows, axis=0))


LINES = [len('{"tokens": []}\n') + len(str(ids)) - 2 for ids in DOCUMENTS]
OFFSETS = [sum(LINES[:n]) for n in range(6)]

DAMAGES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no meta": (lambda path: Path(f"{path}.meta").unlink(), [".meta: a .bin needs its .bin.meta beside it"]),
    "no .npy": (lambda path: Path(f"{path}.meta").write_bytes(b"x"), [".meta: not a readable .npy file"]),
    "another shape": (
        lambda path: change_meta(path, lambda meta: meta[:, 0]),
        [".meta: expected integers [documents, 2]"],
    ),
    "an empty meta": (without_lines(0, 1, 2, 3, 4), [f": its meta lists nothing in the first {OFFSETS[5]} bytes"]),
    "an empty bin": (
        lambda path: path.write_bytes(b""),
        [": its meta points past its end (0 bytes) for 5 of 5 documents, first at line 1"],
    ),
    "negative offsets": (
        cell(4, 0, -5),
        [
            ": 1 of 5 offsets in its meta are negative: 32-bit numbers overflowed",
            ":4: 1 lines after it are not in the meta",
        ],
    ),
    "past the end": (
        cell(4, 0, 1000),
        [
            f": its meta points past its end ({OFFSETS[5]} bytes) for 1 of 5 documents, first at line 5",
            ":4: 1 lines after it are not in the meta",
        ],
    ),
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[: OFFSETS[3] + 5]),
        [
            f": its meta points past its end ({OFFSETS[3] + 5} bytes) for 1 of 5 documents, first at line 5",
            ":4: the line has no end: the file was cut off",
        ],
    ),
    "inside a line": (
        cell(2, 0, OFFSETS[2] + 3),
        [
            f":2: the next document's offset {OFFSETS[2] + 3} lies inside its line",
            f":3: its offset {OFFSETS[2] + 3} is not at the start of a line",
        ],
    ),
    "twice": (
        cell(2, 0, OFFSETS[1]),  # so the third line is listed nowhere
        [f":2: its offset {OFFSETS[1]} is that of another document too", ":3: 1 lines after it are not in the meta"],
    ),
    "a line left out": (without_lines(2), [":2: 1 lines after it are not in the meta"]),
    "the first line left out": (without_lines(0), [f": its meta lists nothing in the first {OFFSETS[1]} bytes"]),
    "a wrong length": (cell(1, 1, 4), [":2: 3 tokens where the meta says 4"]),
    "two wrong lengths": (
        lambda path: (cell(0, 1, 4)(path), cell(1, 1, 2)(path)),
        [":1: 3 tokens where the meta says 4", ":2: 3 tokens where the meta says 2"],
    ),
    "no JSON": (replaced(b"[7]", b"[7 "), [":3: not a JSON line"]),
    "no number": (replaced(b"[7]", b'"a"'), [':3: expected {"tokens": [ids]}']),
    "a fraction": (replaced(b"[8, 9]", b"[8.5,]"), [":4: not a JSON line"]),
    "another field": (replaced(b'"tokens": [7]', b'"tekens": [7]'), [':3: expected {"tokens": [ids]}']),
    "an id too large": (replaced(b"[-4, -5, 6]", b"[-4, 14, 6]"), [":2: token id 14 is outside the vocabulary of 14"]),
    "a context id too large": (
        replaced(b"[10, 11, 12, 13]", b"[10, 11, -99, 9]"),
        [":5: token id 99 is outside the vocabulary of 14"],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damages(name: str, path: Path) -> None:
    damage, expected = DAMAGES[name]
    damage(path)
    problems = found(path, vocab_size=14)
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start), problem


def test_ids_beyond_32_bits_without_a_vocabulary(tmp_path: Path) -> None:
    path = write_bin(tmp_path / "a.bin", [[2**31 - 1], [2**31], [2**80]])
    assert found(path) == [":2: token id 2147483648 does not fit into 32 bits", ':3: expected {"tokens": [ids]}']


def test_more_problems_than_are_listed(tmp_path: Path) -> None:
    paths = [write_bin(tmp_path / f"{n}.bin", [[20]] * 30) for n in range(2)]
    report = verify(paths, vocab_size=14, limit=40)
    assert report.count == 60
    assert [(p.file, p.line) for p in report.problems] == [(paths[0], n) for n in range(1, 31)] + [
        (paths[1], n) for n in range(1, 11)
    ]


def test_on_all_cores_as_on_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TASK_BYTES", 100)
    monkeypatch.setattr(module, "_BATCH_BYTES", 40)
    monkeypatch.setattr(module, "_IN_PROCESS_BYTES", 0)
    path = write_bin(tmp_path / "a.bin", [[n, n] for n in range(50)])
    shares: list[float] = []
    reports = [
        verify([path, path], vocab_size=45, workers=workers, on_progress=lambda share, _: shares.append(share))
        for workers in (1, 2)
    ]
    assert reports[0] == reports[1]
    assert reports[0].documents == 100 and reports[0].tokens == 200 and reports[0].count == 10
    assert [problem.line for problem in reports[0].problems] == [*range(46, 51)] * 2
    assert shares[-1] == 1.0

"""The cache of decoded tokens: right for whoever comes, never in the way."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from evo_core.data import token_files
from evo_core.data.token_files import TokenFile, open_token_files
from evo_core.errors import DataError
from tests.data.corpora import numbered, write_bin

FILES = [numbered(30), [], [[-5, 6]], numbered(8, first=900)]


@pytest.fixture(autouse=True)
def _twins_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_files, "IN_MEMORY_BYTES", 0)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [write_bin(tmp_path / "en" / f"{n}.bin", documents) for n, documents in enumerate(FILES)]


def _documents(file: TokenFile) -> list[list[int]]:
    return [file.ids[file.starts[n] : file.starts[n + 1]].tolist() for n in range(len(file))]


def _cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "tokens").glob("*.tokens"))


def test_twins_and_memory_hold_the_same(tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = open_token_files(paths), open_token_files(paths, first=2)
    assert len(_cached(tmp_path)) == len(FILES)
    monkeypatch.setattr(token_files, "IN_MEMORY_BYTES", 1 << 20)
    for opened in (first, again, open_token_files(paths)):
        assert [_documents(file) for file in opened] == FILES
        assert [file.max_id for file in opened][1:3] == [-1, 6]


def test_small_folders_leave_no_cache(tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_files, "IN_MEMORY_BYTES", 1 << 20)
    open_token_files(paths)
    assert not (tmp_path / "cache").exists()


def test_a_changed_file_is_decoded_again(tmp_path: Path, paths: list[Path]) -> None:
    open_token_files(paths)
    time.sleep(0.01)
    write_bin(paths[2], [[-5, 7]])
    assert _documents(open_token_files(paths)[2]) == [[-5, 7]]


def test_a_damaged_twin_is_made_again(tmp_path: Path, paths: list[Path]) -> None:
    open_token_files(paths)
    for twin in _cached(tmp_path):
        twin.write_bytes(twin.read_bytes()[:-3])
    assert [_documents(file) for file in open_token_files(paths)] == FILES


def test_without_a_cache_it_still_reads(
    tmp_path: Path, paths: list[Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "file" / "below"))
    assert [_documents(file) for file in open_token_files(paths)] == FILES
    assert "no token cache" in caplog.text


def test_old_twins_are_removed_when_new_ones_come(tmp_path: Path, paths: list[Path]) -> None:
    open_token_files(paths)
    old = _cached(tmp_path)[0]
    os.utime(old, (0, 0))
    open_token_files(paths[:1])
    open_token_files([write_bin(tmp_path / "new.bin", [[1]])])
    assert sum(path.stat().st_mtime > 1 for path in _cached(tmp_path)) == len(_cached(tmp_path))


def _open(paths: list[Path], rank: int, results: multiprocessing.Queue) -> None:
    results.put([_documents(file) for file in open_token_files(paths, first=rank)])


def test_many_ranks_start_at_once(tmp_path: Path, paths: list[Path]) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue = context.Queue()
    ranks = [context.Process(target=_open, args=(paths, rank, results)) for rank in range(6)]
    for rank in ranks:
        rank.start()
    found = [results.get(timeout=30) for _ in ranks]
    for rank in ranks:
        rank.join(30)
    assert all(documents == FILES for documents in found)
    assert len(_cached(tmp_path)) == len(FILES)
    assert list((tmp_path / "cache" / "tokens").glob("*.tmp")) == []


def test_damaged_files_leave_no_twin(tmp_path: Path) -> None:
    path = write_bin(tmp_path / "x.bin", [[1, 2], [3, 4]])
    path.write_bytes(path.read_bytes().replace(b"3", b"x"))
    with pytest.raises(DataError, match=r"x\.bin:2"):
        open_token_files([path])
    assert _cached(tmp_path) == []


def test_ids_that_no_model_has(tmp_path: Path) -> None:
    path = write_bin(tmp_path / "x.bin", [[1], [2**40]])
    with pytest.raises(DataError, match=f"token id {2**40} is outside"):
        open_token_files([path])

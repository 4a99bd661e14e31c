"""The cache of decoded tokens: right for whoever comes, never in the way."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from evo_core.data.corpus import token_cache
from evo_core.data.corpus.token_cache import TokenFile, open_token_files
from evo_core.data.loader.train_data import TrainData
from evo_core.errors import DataError
from tests.data.corpora import job, numbered, write_bin
from tests.forked import FORK

FILES = [numbered(30), [], [[-5, 6]], numbered(8, first=900)]


@pytest.fixture(autouse=True)
def _twins_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "IN_MEMORY_BYTES", 0)


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
    monkeypatch.setattr(token_cache, "IN_MEMORY_BYTES", 1 << 20)
    for opened in (first, again, open_token_files(paths)):
        assert [_documents(file) for file in opened] == FILES
        assert [file.max_id for file in opened][1:3] == [-1, 6]


def test_small_folders_leave_no_cache(tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "IN_MEMORY_BYTES", 1 << 20)
    open_token_files(paths)
    assert not (tmp_path / "cache").exists()


def test_a_changed_file_is_decoded_again(tmp_path: Path, paths: list[Path]) -> None:
    open_token_files(paths)
    time.sleep(0.01)
    write_bin(paths[2], [[-5, 7]])
    assert _documents(open_token_files(paths)[2]) == [[-5, 7]]


def test_a_damaged_twin_is_made_again(tmp_path: Path, paths: list[Path]) -> None:
    open_token_files(paths)
    for cached in _cached(tmp_path):
        cached.write_bytes(cached.read_bytes()[:-3])
    assert [_documents(file) for file in open_token_files(paths)] == FILES


@pytest.mark.parametrize(
    "offset", [24, 64, 64 + 4 * 70, -1, -20], ids=["largest id", "first id", "an id", "hash", "trained"]
)
def test_a_twin_that_says_another_thing_is_made_again(
    offset: int, tmp_path: Path, paths: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    first = open_token_files(paths)[0]
    (cached,) = [path for path in _cached(tmp_path) if path == first.cached]
    expected = (first.ids.tolist(), first.hashes.tolist(), first.trained.tolist(), first.max_id)
    content = bytearray(cached.read_bytes())
    content[offset] ^= 64
    del first
    cached.write_bytes(content)
    again = open_token_files(paths)[0]
    assert (again.ids.tolist(), again.hashes.tolist(), again.trained.tolist(), again.max_id) == expected
    assert f"the token cache of {paths[0]} was damaged, and is made again" in caplog.text
    caplog.clear()
    open_token_files(paths)
    assert not caplog.text


def test_a_batch_never_holds_a_wrong_id_of_the_cache(tmp_path: Path) -> None:
    path = write_bin(tmp_path / "train/en/a.bin", numbered(40))

    def batch(**options: Any) -> list:
        data = TrainData(job(tmp_path / "train", **options), dp_rank=0, dp_size=1)
        rows = data.batch(0).input_ids.tolist()
        data.close()
        return rows

    expected = batch()
    (cached,) = _cached(tmp_path)
    shared: dict[str, Any] = {"use_shm": True, "shm_path": str(tmp_path / "shm")}
    for options in ({}, shared):
        content = bytearray(cached.read_bytes())
        content[64:164] = bytes(100)
        cached.write_bytes(content)
        assert batch(**options) == expected
    assert len(_cached(tmp_path)) == 1 and path.exists()


def test_how_many_tokens_are_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are not negative, but never the first of a document."""
    documents = [[1], [1, 2, 3], [-1, -2], [-1, 2, -3, 0], [1, -2, -3], []]
    path = write_bin(tmp_path / "x.bin", documents)
    for in_memory in (True, False):
        monkeypatch.setattr(token_cache, "IN_MEMORY_BYTES", 1 << 20 if in_memory else 0)
        assert open_token_files([path])[0].trained.tolist() == [0, 2, 0, 2, 0, 0]


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


def _open(paths: list[Path], rank: int, results: Any) -> None:
    results.put([_documents(file) for file in open_token_files(paths, first=rank)])


def test_many_ranks_start_at_once(tmp_path: Path, paths: list[Path]) -> None:
    results = FORK.SimpleQueue()
    ranks = [FORK.Process(target=_open, args=(paths, rank, results)) for rank in range(6)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(30)
    assert [rank.exitcode for rank in ranks] == [0] * 6
    found = [results.get() for _ in ranks]
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

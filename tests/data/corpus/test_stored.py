"""An index that is kept in the cache: made once, found again, and made again where it is not what was written."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from evo_core.data.corpus.index import Arrays
from evo_core.data.corpus.stored import StoredIndex

MADE = {"long": np.arange(5000), "none": np.zeros(0, np.int64), "names": np.array([b"a", b"bc"])}


def make() -> Arrays:
    return MADE


def never() -> Arrays:
    raise AssertionError("it is there already")


def check(found: Arrays) -> None:
    assert found.keys() == MADE.keys()
    for name, array in MADE.items():
        assert found[name].dtype == array.dtype
        assert found[name].tolist() == array.tolist()


def test_it_is_found_again() -> None:
    index = StoredIndex("key")
    assert not index.holds("blocks")
    check(index.arrays("blocks", make))
    assert index.holds("blocks")
    check(index.arrays("blocks", never))
    check(StoredIndex("key").arrays("blocks", never))
    assert not StoredIndex("other").holds("blocks")
    with pytest.raises(AssertionError):
        StoredIndex("other").arrays("blocks", never)


def test_another_makes_it_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks, as on some shared file systems, two may be at it: the one that is first has made it."""
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "other"))
    StoredIndex("key").arrays("blocks", make)
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "own"))

    def late() -> Arrays:
        shutil.copytree(tmp_path / "other" / "corpora", tmp_path / "own" / "corpora", dirs_exist_ok=True)
        return make()

    check(StoredIndex("key").arrays("blocks", late))
    check(StoredIndex("key").arrays("blocks", never))


def test_an_error_of_the_files_themselves_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    tries = []

    def unreadable() -> Arrays:
        tries.append(1)
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        StoredIndex("key").arrays("blocks", unreadable)
    assert len(tries) == 1 and "no index can be kept" not in caplog.text


def test_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "file"))
    check(StoredIndex("key").arrays("blocks", make))
    assert "it is made again at every start" in caplog.text


def test_what_nobody_has_used_for_a_month_goes(tmp_path: Path) -> None:
    StoredIndex("old").arrays("blocks", make)
    StoredIndex("used").arrays("blocks", make)
    root = tmp_path / "cache" / "corpora"
    for folder in root.iterdir():
        os.utime(folder, (time.time() - 40 * 86400,) * 2)
    StoredIndex("used").arrays("blocks", never)
    StoredIndex("new").arrays("blocks", make)
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["new-blocks", "used-blocks"]

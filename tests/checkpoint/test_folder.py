"""Names, order and removal of checkpoint folders."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from evo_core.checkpoint import newest_complete
from evo_core.checkpoint.folder import create, find, remove_old
from evo_core.checkpoint.run import Run
from evo_core.errors import CheckpointError
from evo_core.storage.location import Location
from evo_core.weights.loading import resolve


def make(root: Path, *names: str, complete: bool = True) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        if complete:
            (root / name / "manifest.json").write_text("{}")


def left(root: Path) -> list[str]:
    return [str(found.path.relative_to(root)) for found in find(root)]


def test_newest_by_number_then_attempt_snapshots_too(tmp_path: Path) -> None:
    make(tmp_path, "9", "10", "10-2", "snapshot/12", "snapshot/8", "notes", "RUN")
    assert left(tmp_path) == ["snapshot/12", "10-2", "10", "9", "snapshot/8"]
    assert newest_complete(tmp_path) == tmp_path / "snapshot" / "12"
    assert newest_complete(f"local:{tmp_path}") == tmp_path / "snapshot" / "12"


def test_a_checkpoint_goes_before_a_snapshot_of_the_same_step(tmp_path: Path) -> None:
    make(tmp_path, "8", "snapshot/8")
    assert newest_complete(tmp_path) == tmp_path / "8"


def test_incomplete_ones_are_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "5")
    make(tmp_path, "10", "3", complete=False)
    with caplog.at_level(logging.WARNING):
        assert newest_complete(tmp_path) == tmp_path / "5"
    assert [r.getMessage() for r in caplog.records] == [
        f"checkpoint {tmp_path / '10'} is incomplete (no manifest.json): ignored"
    ]


def test_nothing_there(tmp_path: Path) -> None:
    assert newest_complete(tmp_path) is None
    assert newest_complete(tmp_path / "nowhere") is None


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    names = [create(tmp_path / "ck", 5).name for _ in range(3)]
    assert names == ["5", "5-2", "5-3"]
    assert create(tmp_path / "ck", 5, snapshot=True) == tmp_path / "ck" / "snapshot" / "5"


def test_a_folder_never_is_without_its_owner(tmp_path: Path) -> None:
    """Whatever name appears, its run.json is there: a kill leaves no folder that nobody removes."""
    seen: list[bool] = []

    class Watching(Run):
        def write(self, checkpoint: Location) -> bool:
            seen.append(any(not path.name.startswith(".") for path in tmp_path.iterdir()))
            return super().write(checkpoint)

    path = create(tmp_path, 5, Watching("id", "job"))
    assert seen == [False] and Run.read(path) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["5"]


def test_retention(tmp_path: Path) -> None:
    make(tmp_path, "1", "2", "3", "4", *(f"snapshot/{n}" for n in (5, 6, 7)))
    make(tmp_path, "2-2", "9", complete=False)
    remove_old(tmp_path, None)
    kept = ["9", "snapshot/7", "snapshot/6"]  # 9 may be in the making, and nothing will ever complete 2-2
    assert left(tmp_path) == [*kept, "4", "3", "2", "1"]
    remove_old(tmp_path, 2, keep_every=2)
    assert left(tmp_path) == [*kept, "4", "3", "2"]
    remove_old(tmp_path, 2)
    assert left(tmp_path) == [*kept, "4", "3"]


def test_one_that_was_put_elsewhere_stays_there(tmp_path: Path) -> None:
    make(tmp_path / "archive", "1")
    make(tmp_path / "ckpt", "2", "3")
    (tmp_path / "ckpt" / "1").symlink_to(tmp_path / "archive" / "1")
    assert left(tmp_path / "ckpt") == ["3", "2", "1"]
    remove_old(tmp_path / "ckpt", 1)
    assert left(tmp_path / "ckpt") == ["3"]
    assert left(tmp_path / "archive") == ["1"] and newest_complete(tmp_path / "archive") == tmp_path / "archive" / "1"


def test_resolve(tmp_path: Path) -> None:
    make(tmp_path, "4", "7")
    (tmp_path / "empty").mkdir()
    assert resolve(tmp_path / "4") == tmp_path / "4"
    assert resolve(f"local:{tmp_path}") == tmp_path / "7"
    for place, problem in (
        (tmp_path / "nowhere", "no such checkpoint folder"),
        (tmp_path / "empty", "no complete checkpoint here"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            resolve(place)

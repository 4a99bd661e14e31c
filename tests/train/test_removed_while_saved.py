"""What somebody removes while a checkpoint is written never becomes a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evo_core.checkpoint import newest_complete, saving, verify
from evo_core.errors import CheckpointError
from evo_core.storage.files import delete
from tests.ranks import run_on_ranks
from tests.train.jobs import job, run

REMOVED = ["", "6", "6/optimizer/__1_0.distcp", "6/config.yaml", "6/run.json"]


def remove_before_the_manifest(path: Path, *, times: int) -> None:
    """Have this rank's next saves of step 6 lose something as the last thing before they are completed."""
    left, complete = times, saving._complete

    def after_a_loss(folder: Path, *args: Any) -> None:
        nonlocal left
        if folder.name == "6" and left:
            left -= 1
            delete(path)
        complete(folder, *args)

    saving._complete = after_a_loss


@pytest.mark.parametrize("what", REMOVED)
def test_in_the_step(tmp_path: Path, what: str) -> None:
    cfg = job(tmp_path)

    def body() -> None:
        remove_before_the_manifest(tmp_path / "ckpt" / what, times=1)
        with pytest.raises(CheckpointError, match=r"/ckpt/6: no checkpoint can be saved: "):
            run(cfg, tmp_path / "run")
        if what:
            assert newest_complete(tmp_path / "ckpt") == tmp_path / "ckpt" / "3"
            verify(tmp_path / "ckpt" / "3")
        else:
            assert newest_complete(tmp_path / "ckpt") is None

    run_on_ranks(body, 2)
    assert not (tmp_path / "ckpt" / "6").exists()


def test_in_the_background_a_second_attempt_makes_it_whole(tmp_path: Path) -> None:
    cfg = job(tmp_path, ckpt__async_upload=True)

    def body() -> None:
        remove_before_the_manifest(tmp_path / "ckpt" / "6" / "optimizer" / "__1_0.distcp", times=1)
        run(cfg, tmp_path / "run")
        assert verify(tmp_path / "ckpt" / "6").step == 6

    run_on_ranks(body, 2)


def test_in_the_background_it_is_lost_where_the_second_fails_too(tmp_path: Path) -> None:
    cfg = job(tmp_path, ckpt__async_upload=True)

    def body() -> None:
        remove_before_the_manifest(tmp_path / "ckpt" / "6" / "model", times=2)
        with pytest.raises(CheckpointError, match=r"/ckpt/6: no checkpoint can be saved: "):
            run(cfg, tmp_path / "run")
        assert sorted(path.name for path in (tmp_path / "ckpt").iterdir()) == ["3", "8"]
        verify(tmp_path / "ckpt" / "3")
        verify(tmp_path / "ckpt" / "8")

    run_on_ranks(body, 2)

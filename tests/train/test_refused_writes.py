"""What the file system refuses ends a run in one line, before work where that can be known."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evo_core.errors import CheckpointError, ConfigError, UserError
from evo_core.train.sinks import MetricsFile
from tests import disks
from tests.ranks import run_on_ranks
from tests.train.jobs import job, run, write_job
from tests.train.processes import Command
from tests.train.watched import Disk

BIG = {"model__hidden_size": 64, "model__dtype": "torch.float32"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    with disks.small_disk(tmp_path / "disk", "256k") as folder:
        yield folder


def one_line(log: Path) -> str:
    said = log.read_text()
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("evo_core.train: error: ")]
    return line


@pytest.mark.parametrize("behind", [False, True], ids=["in the step", "in the background"])
def test_a_full_disk_is_named_and_its_room_given_back(tmp_path: Path, small_disk: Path, behind: bool) -> None:
    write_job(tmp_path, ckpt__save_ckpt_folder=str(small_disk / "ckpt"), ckpt__async_upload=behind, **BIG)
    arguments = ["--config", str(tmp_path / "job.yaml"), "--folder", str(tmp_path / "run")]
    assert Command(arguments, tmp_path / "log").wait() == [2]
    line = one_line(tmp_path / "log")
    assert f"{small_disk / 'ckpt' / '3'}: no checkpoint can be saved: No space left on device" in line
    assert list((small_disk / "ckpt").iterdir()) == []


@pytest.mark.parametrize("behind", [False, True], ids=["in the step", "in the background"])
def test_a_disk_that_fills_up_costs_the_steps_since_the_last_checkpoint(tmp_path: Path, behind: bool) -> None:
    with disks.small_disk(tmp_path / "disk", "4m") as disk:
        saves = Disk(disk / "ckpt")
        write_job(tmp_path, ckpt__save_ckpt_folder=saves.location, ckpt__async_upload=behind)

        def fill_up(step: int) -> None:
            if step == 5:
                while saves.complete() != {"3"}:
                    time.sleep(0.01)
                disks.fill(disk)

        arguments = ["--config", str(tmp_path / "job.yaml"), "--folder", str(tmp_path / "run")]
        assert Command(arguments, tmp_path / "log", each_step=fill_up).wait() == [2]
        assert "/ckpt: no checkpoint can be saved: No space left on device" in one_line(tmp_path / "log")
        assert saves.begun() == saves.complete() == {"3"}
        saves.check()
        (disk / "filler").unlink()
        assert Command(arguments, tmp_path / "again").wait() == [0]
        assert f"resuming from {saves.location}/3\n" in (tmp_path / "again").read_text()
        assert saves.begun() == saves.complete() == {"3", "6", "8"}


@pytest.mark.parametrize("behind", [False, True], ids=["in the step", "in the background"])
def test_every_rank_is_told_of_a_full_disk(tmp_path: Path, small_disk: Path, behind: bool) -> None:
    cfg = job(tmp_path, ckpt__save_ckpt_folder=str(small_disk / "ckpt"), ckpt__async_upload=behind, **BIG)

    def body() -> str:
        with pytest.raises(CheckpointError, match="no checkpoint can be saved: No space left on device") as error:
            run(cfg, tmp_path / "run")
        return str(error.value)

    assert len(set(run_on_ranks(body, 2))) == 1


def test_a_limit_on_file_sizes_is_named(tmp_path: Path) -> None:
    write_job(tmp_path, **BIG)

    def limit(step: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))

    arguments = ["--config", str(tmp_path / "job.yaml"), "--folder", str(tmp_path / "run")]
    assert Command(arguments, tmp_path / "log", each_step=limit).wait() == [2]
    assert "no checkpoint can be saved: a file may have 60000 bytes here (ulimit -f)" in one_line(tmp_path / "log")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_save_folder_that_is_none_is_found_before_work(tmp_path: Path, place: str, ranks: int) -> None:
    (tmp_path / "file").write_text("mine")
    cfg = job(tmp_path, ckpt__save_ckpt_folder=f"local:{tmp_path / place}")

    def body() -> None:
        with pytest.raises(CheckpointError, match=rf"{place}: no checkpoint can be saved there: is no folder"):
            run(cfg, tmp_path / "run")

    run_on_ranks(body, ranks)
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "file").read_text() == "mine"


def test_a_working_folder_where_nothing_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").write_text("a file")
    from evo_core.train import train

    with pytest.raises(ConfigError, match=r"RUN/test/.*: cannot be made: Not a directory .*--folder"):
        train(job(tmp_path, data__total_steps=1))


@pytest.mark.parametrize("place", ["folder", "file/stop"])
def test_a_stop_file_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    cfg = job(tmp_path, ckpt__stop_file_path=str(tmp_path / place))

    def body() -> None:
        with pytest.raises(ConfigError, match=r"ckpt\.stop_file_path: cannot be written"):
            run(cfg, tmp_path / "run")

    run_on_ranks(body, 2)


def test_the_curve_on_a_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    with Path("/dev/full").open("w") as full:
        os.dup2(full.fileno(), file._stream.fileno())
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
        for _ in range(100_000):
            file.write({"step": 1})
    file.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_run_whose_output_goes_nowhere_goes_on_and_says_so_once(tmp_path: Path) -> None:
    config = write_job(tmp_path, data__total_steps=3)
    arguments = [sys.executable, "-m", "evo_core.train", "--config", str(config), "--folder", str(tmp_path / "run")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr.splitlines() == ["stdout: log lines are lost: No space left on device"]
    assert "finished at step 3" in (tmp_path / "run" / "train.log").read_text()
    assert (tmp_path / "ckpt" / "3" / "manifest.json").is_file()

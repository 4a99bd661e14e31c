"""The command: exit statuses, what it leaves in the job folder, how it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.nn.modules.module import register_module_forward_hook

from evo_core.checkpoint import newest_complete
from tests.train.jobs import curve, losses, write_job
from tests.train.processes import Command


def arguments(tmp_path: Path, *more: str) -> list[str]:
    return ["--config", str(tmp_path / "job.yaml"), "--folder", str(tmp_path / "run"), *more]


def test_success_leaves_progress(tmp_path: Path) -> None:
    write_job(tmp_path)
    (tmp_path / "state").mkdir()
    command = Command(
        arguments(tmp_path, "--set", "data.total_steps=4", "--set", "lr_scheduler.total_steps=4"),
        tmp_path / "log",
        ranks=2,
        environment={"EVO_JOB_FOLDER": str(tmp_path / "state")},
    )
    assert command.wait() == [0, 0]
    progress = json.loads((tmp_path / "state" / "progress.json").read_text())
    assert (progress["done"], progress["total"], progress["unit"]) == (4, 4, "steps")
    assert progress["loss"] == losses(tmp_path / "run")[-1]
    assert progress["tokens"] == 512
    assert progress["tokens_per_second"] > 0
    assert progress["eta_seconds"] == 0
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["progress.json"]


def test_seed_and_set(tmp_path: Path) -> None:
    write_job(tmp_path)
    more = ("--seed", "5", "--set", "ckpt.enable_save_ckpt=false", "--set", "data.total_steps=1")
    assert Command(arguments(tmp_path, *more, "--launcher", "torch"), tmp_path / "log", ranks=2).wait() == [0, 0]
    assert "seed 5:" in (tmp_path / "log").read_text()
    assert not (tmp_path / "ckpt").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_users_mistake_is_one_line_and_status_2(tmp_path: Path, ranks: int) -> None:
    write_job(tmp_path)
    (tmp_path / "state").mkdir()
    command = Command(
        arguments(tmp_path, "--set", "data.train_folder=/nowhere"),
        tmp_path / "log",
        ranks=ranks,
        environment={"EVO_JOB_FOLDER": str(tmp_path / "state")},
    )
    assert command.wait() == [2] * ranks
    log = (tmp_path / "log").read_text()
    assert "evo_core.train: error: /nowhere" in log
    assert "Traceback" not in log
    error = json.loads((tmp_path / "state" / "error.json").read_text())
    assert (error["type"], error["user_error"]) == ("DataError", True)


def test_a_wrong_key_is_found_before_torch_is_imported(tmp_path: Path) -> None:
    write_job(tmp_path)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "evo_core.train", *arguments(tmp_path, "--set", "adam.lrr=1")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert 'adam.lrr: unknown key; did you mean "lr"?' in done.stderr
    assert "| torch\n" not in done.stderr


def test_torchrun_does_not_repeat_a_users_mistake(tmp_path: Path) -> None:
    write_job(tmp_path)
    (tmp_path / "state").mkdir()
    environment = {"EVO_JOB_FOLDER": str(tmp_path / "state")}
    wrong = arguments(tmp_path, "--set", "data.train_folder=/nowhere")
    assert Command(wrong, tmp_path / "log", environment=environment).wait() == [2]
    again = {**environment, "TORCHELASTIC_RESTART_COUNT": "1"}
    assert Command(wrong, tmp_path / "log2", environment=again).wait() == [2]
    assert (tmp_path / "log2").read_text() == ""


def test_a_crash_is_a_traceback_status_1_and_error_json_of_the_first_rank(tmp_path: Path) -> None:
    write_job(tmp_path)
    (tmp_path / "state").mkdir()
    environment = {"EVO_JOB_FOLDER": str(tmp_path / "state")}

    def crash(*_: Any) -> None:
        raise ZeroDivisionError("by accident")

    def arm(step: int) -> None:
        if step == 2 and os.environ["RANK"] == "1":
            register_module_forward_hook(crash)

    command = Command(arguments(tmp_path), tmp_path / "log", ranks=2, each_step=arm, environment=environment)
    statuses = command.wait()
    assert statuses[1] == 1
    assert statuses[0] != 0  # its peer is gone
    error = json.loads((tmp_path / "state" / "error.json").read_text())
    assert (error["type"], error["message"], error["rank"]) == ("ZeroDivisionError", "by accident", 1)
    assert (error["user_error"], error["attempt"]) == (False, 0)
    assert "in crash" in error["traceback"]

    again = {**environment, "TORCHELASTIC_RESTART_COUNT": "1"}  # a later attempt that succeeds takes it away
    assert Command(arguments(tmp_path), tmp_path / "log2", ranks=2, environment=again).wait() == [0, 0]
    assert not (tmp_path / "state" / "error.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_saves_and_exits_with_143(tmp_path: Path, number: signal.Signals) -> None:
    write_job(tmp_path, ckpt__checkpoint_every=100, data__total_steps=50)

    def interrupt(step: int) -> None:
        if step == 4 and os.environ["RANK"] == "0":
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # torchrun and a terminal both pass it on

    command = Command(arguments(tmp_path), tmp_path / "log", ranks=2, each_step=interrupt)
    assert command.wait() == [143, 143]
    assert newest_complete(tmp_path / "ckpt") == tmp_path / "ckpt" / "5"
    assert len(curve(tmp_path / "run")) == 5
    log = (tmp_path / "log").read_text()
    assert log.count("stopped by a signal at step 5 of 50") == 1
    assert "Traceback" not in log

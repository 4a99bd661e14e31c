"""How a run over stages ends before its time: all of them together, also where no launcher ends them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.nn.modules.module import register_module_forward_hook

from evo_core.model.decoder import Block
from evo_core.train.command import STOPPED
from tests.train.jobs import curve, write_job
from tests.train.processes import Command

pytestmark = pytest.mark.faults

RANKS = 3
LAYOUT: dict[str, Any] = {"model__num_layers": 3, "model__drop_rate": 0.1, "parallel__pipeline": {"size": RANKS}}


def started(tmp_path: Path, name: str, each_step: Callable[[int], None] | None = None) -> Command:
    arguments = ["--config", str(tmp_path / "job.yaml"), "--folder", str(tmp_path / "run")]
    environment = {"EVO_JOB_FOLDER": str(tmp_path)}
    return Command(arguments, tmp_path / name, ranks=RANKS, each_step=each_step, environment=environment)


def in_the_middle(step: int, act: Callable[[], None]) -> Callable[[int], None]:
    """For `each_step`: the middle stage acts behind the first block of a step."""

    def arm(now: int) -> None:
        if now == step and os.environ["RANK"] == "1":
            register_module_forward_hook(lambda module, *_: act() if isinstance(module, Block) else None)

    return arm


def test_one_that_is_killed_takes_the_others_with_it(tmp_path: Path) -> None:
    """Nobody starts or ends them: each finds a neighbour gone."""
    write_job(tmp_path, **LAYOUT)
    statuses = started(tmp_path, "log", in_the_middle(5, lambda: os.kill(os.getpid(), signal.SIGKILL))).wait()
    assert statuses == [1, -signal.SIGKILL, 1]
    assert len(curve(tmp_path / "run")) == 5


def test_one_that_fails_says_why_for_all(tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError("in a block")

    write_job(tmp_path, **LAYOUT)
    assert started(tmp_path, "log", in_the_middle(5, fail)).wait() == [1, 1, 1]
    error = json.loads((tmp_path / "error.json").read_text())
    assert (error["type"], error["message"], error["rank"]) == ("ZeroDivisionError", "in a block", 1)


@pytest.mark.parametrize("rank", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_to_one_saves_and_ends_all(tmp_path: Path, rank: int) -> None:
    """In the step before an evaluation is due: nobody begins it, and the checkpoint is of that step."""
    write_job(tmp_path, **LAYOUT, data__valid_every=4)

    def tell(step: int) -> None:
        if step == 3 and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGTERM)

    assert started(tmp_path, "log", tell).wait() == [STOPPED] * RANKS
    assert (tmp_path / "ckpt" / "4" / "manifest.json").is_file()
    assert len(curve(tmp_path / "run")) == 4
    assert "evaluation after" not in (tmp_path / "log").read_text()


def test_the_stop_file_ends_all(tmp_path: Path) -> None:
    stop_file = tmp_path / "stop"
    write_job(tmp_path, **LAYOUT, ckpt__stop_file_path=str(stop_file))

    def ask(step: int) -> None:
        if step == 2 and os.environ["RANK"] == "0":
            stop_file.write_text("5")

    assert started(tmp_path, "log", ask).wait() == [0] * RANKS
    assert len(curve(tmp_path / "run")) == 5
    assert (tmp_path / "ckpt" / "5" / "manifest.json").is_file()

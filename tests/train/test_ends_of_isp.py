"""How a run ends before its time where copies of the model share weights (isp): all together, and it goes on as if
nothing had been."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.nn.modules.module import register_module_forward_hook

from evo_core.parallel.weight.linear import GatheredLinear
from evo_core.train.command import STOPPED
from tests.evaluate.test_isp import isp
from tests.train.jobs import curve, losses, write_job
from tests.train.processes import Command
from tests.train.test_kill import survives_under_torchrun, undisturbed

pytestmark = pytest.mark.faults

RANKS = 4
JOB: dict[str, Any] = {
    "model__dtype": "torch.float32",
    "model__drop_rate": 0.1,
    "data__valid_every": 4,
    "ckpt__checkpoint_every": 3,
    "parallel": isp(2, 4),
}


def started(tmp_path: Path, run: str, each_step: Callable[[int], None] | None = None) -> list[int]:
    arguments = ["--config", str(tmp_path / "job.yaml"), "--folder", str(tmp_path / run)]
    return Command(arguments, tmp_path / f"{run}.log", ranks=RANKS, each_step=each_step).wait()


def behind_a_layer(step: int, training: bool, number: signal.Signals) -> Callable[[int], None]:
    """For `each_step`: rank 1 is sent a signal behind the first layer of a pass; weights of the next are under way."""

    def arm(now: int) -> None:
        if now != step or os.environ["RANK"] != "1":
            return

        def send(module: Any, *_: Any) -> None:
            if isinstance(module, GatheredLinear) and module.training == training:
                handle.remove()
                os.kill(os.getpid(), number)

        handle = register_module_forward_hook(send)

    return arm


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_job(folder, **JOB)
    assert started(folder, "run") == [0] * RANKS
    return losses(folder / "run")


@pytest.mark.parametrize(
    ("training", "done"), [(True, 5), pytest.param(False, 3, marks=pytest.mark.slow)], ids=["step", "evaluation"]
)
def test_one_that_is_killed_takes_the_others_with_it(
    tmp_path: Path, expected: list[float], training: bool, done: int
) -> None:
    """Nobody starts or ends them: each waits for a part of a weight from one that is gone."""
    write_job(tmp_path, **JOB)
    statuses = started(tmp_path, "run", behind_a_layer(5 if training else 3, training, signal.SIGKILL))
    assert statuses == [1, -signal.SIGKILL, 1, 1]
    assert len(curve(tmp_path / "run")) == done
    assert started(tmp_path, "run") == [0] * RANKS
    assert losses(tmp_path / "run") == expected


@pytest.mark.slow
def test_a_signal_in_an_evaluation_ends_all_behind_the_next_step(tmp_path: Path, expected: list[float]) -> None:
    """The evaluation is made to its end: its scores are in the curve."""
    write_job(tmp_path, **JOB)
    statuses = started(tmp_path, "run", behind_a_layer(3, False, signal.SIGTERM))
    assert statuses == [STOPPED] * RANKS
    assert len(curve(tmp_path / "run")) == 5
    assert "val/en_loss" in curve(tmp_path / "run")[3]
    assert started(tmp_path, "run") == [0] * RANKS
    assert losses(tmp_path / "run") == expected


@pytest.mark.slow
def test_torchrun_restarts_ranks_that_share_weights(tmp_path: Path) -> None:
    layout: dict[str, Any] = {"parallel": isp(2, 4), "model__drop_rate": 0.1, "data__valid_every": 5}
    expected = undisturbed(tmp_path, ranks=RANKS, **layout)
    survives_under_torchrun(tmp_path, expected, [(8, 1)], ranks=RANKS)

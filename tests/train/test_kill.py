"""kill -9 of a rank, of everything, at any moment: the curve of the uninterrupted run, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.train.jobs import curve, losses, write_job
from tests.train.processes import Command, free_port

pytestmark = pytest.mark.faults

STEPS = 24


def arguments(tmp_path: Path, run: str = "run") -> list[str]:
    return ["--config", str(tmp_path / "job.yaml"), "--folder", str(tmp_path / run)]


def undisturbed(tmp_path: Path, *, ranks: int = 2, **changes: Any) -> list[float]:
    """The losses of a run that nobody disturbs, on so many ranks in float32; its job is left to be run again."""
    changes |= {"model__dtype": "torch.float32", "data__total_steps": STEPS, "ckpt__checkpoint_every": 5}
    write_job(tmp_path, ckpt__save_ckpt_folder=str(tmp_path / "undisturbed"), **changes)
    assert Command(arguments(tmp_path, "undisturbed_run"), tmp_path / "log0", ranks=ranks).wait() == [0] * ranks
    write_job(tmp_path, **changes)
    return losses(tmp_path / "undisturbed_run")


@pytest.fixture
def expected(tmp_path: Path) -> list[float]:
    """The losses of two data-parallel ranks that nobody disturbs."""
    return undisturbed(tmp_path)


def kills(tmp_path: Path, expected: list[float], times: int, **changes: Any) -> None:
    write_job(tmp_path, model__dtype="torch.float32", data__total_steps=STEPS, ckpt__checkpoint_every=5, **changes)
    choose = random.Random(times)
    for attempt in range(times):
        command = Command(arguments(tmp_path), tmp_path / f"log{attempt + 1}", ranks=2)
        time.sleep(choose.uniform(0.05, 1.2))
        command.kill()
        command.wait()
    assert Command(arguments(tmp_path), tmp_path / "last", ranks=2).wait() == [0, 0]
    assert losses(tmp_path / "run") == expected
    assert [record["step"] for record in curve(tmp_path / "run")] == list(range(STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("behind", [False, True], ids=["saved in the step", "saved in the background"])
def test_everything_killed_many_times(tmp_path: Path, expected: list[float], behind: bool) -> None:
    kills(tmp_path, expected, 50, ckpt__async_upload=behind)


FEW = [("manifest", False), ("tensors", True)]
MORE = [("tensors", False), ("records", False), ("records", True), ("manifest", True)]


@pytest.mark.parametrize(
    ("where", "behind"),
    [*FEW, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE)],
)
def test_killed_while_saving(tmp_path: Path, expected: list[float], where: str, behind: bool) -> None:
    """One rank dies inside the second save; the others go with it; the first checkpoint is whole."""
    changes = {"model__dtype": "torch.float32", "data__total_steps": STEPS, "ckpt__checkpoint_every": 5}
    write_job(tmp_path, ckpt__async_upload=behind, **changes)

    def arm(step: int) -> None:
        if step != 7 or os.environ["RANK"] != ("1" if where == "records" else "0"):
            return
        import evo_core.checkpoint.saving as saving

        name = {"tensors": "write_parts", "records": "_write_tensors", "manifest": "write_manifest"}[where]
        whole = getattr(saving, name)

        def dies(folder: Path, *args: Any) -> Any:
            if "10" in folder.parts:  # the save before may still be under way
                if where == "records":
                    whole(folder, *args)
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(folder, *args)

        setattr(saving, name, dies)

    command = Command(arguments(tmp_path), tmp_path / "log1", ranks=2, each_step=arm)
    assert -signal.SIGKILL in command.wait()
    assert not (tmp_path / "ckpt" / "10" / "manifest.json").exists()
    assert Command(arguments(tmp_path), tmp_path / "log2", ranks=2).wait() == [0, 0]
    log = (tmp_path / "log2").read_text()
    if where != "records":  # the rank that completes it lives a moment longer, and may have removed it
        assert f"{tmp_path / 'ckpt' / '10'} is incomplete" in log
    assert f"resuming from {tmp_path / 'ckpt' / '5'}" in log
    assert losses(tmp_path / "run") == expected


def test_killed_between_an_update_and_the_end_of_its_gather(tmp_path: Path, expected: list[float]) -> None:
    """The parameters are partly those of before: none of it is kept, and the curve is the one without the overlap."""
    optim = {"clip_grad_norm": 1.0, "overlap_sync_param": True, "all_gather_size": 500}
    changes = {"model__dtype": "torch.float32", "data__total_steps": STEPS, "ckpt__checkpoint_every": 5}
    write_job(tmp_path, hybrid_zero_optimizer=optim, **changes)

    def arm(step: int) -> None:
        if step != 7 or os.environ["RANK"] != "1":
            return
        from evo_core.optim.publishing import Publishing

        take = Publishing._take

        def dies(publishing: Publishing) -> None:
            if publishing.taken == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            take(publishing)

        Publishing._take = dies  # type: ignore[method-assign]

    command = Command(arguments(tmp_path), tmp_path / "log1", ranks=2, each_step=arm)
    assert -signal.SIGKILL in command.wait()
    assert Command(arguments(tmp_path), tmp_path / "log2", ranks=2).wait() == [0, 0]
    assert f"resuming from {tmp_path / 'ckpt' / '5'}" in (tmp_path / "log2").read_text()
    assert losses(tmp_path / "run") == expected


DYING_RANK = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from torch.nn.modules.module import register_module_forward_hook
from tests.train.jobs import before_each_step
from evo_core.model.decoder import Block
from evo_core.train.command import main

def die(step):
    mark = Path({marks!r}) / f"{{step}}-{{os.environ['RANK']}}"
    if (step, int(os.environ["RANK"])) in {deaths} and not mark.exists():
        mark.touch()
        register_module_forward_hook(end)

def end(module, *_):
    if isinstance(module, Block):
        os.kill(os.getpid(), {by})

before_each_step(die)
main()
"""


def survives_under_torchrun(
    tmp_path: Path,
    expected: list[float],
    deaths: list[tuple[int, int]],
    *,
    ranks: int = 2,
    agents: int = 1,
    by: int = signal.SIGKILL,
) -> None:
    """Every (step, rank) of `deaths` is a kill -9, or another signal, behind the first block of the step, once."""
    script, marks = tmp_path / "dying_rank.py", tmp_path / "marks"
    marks.mkdir()
    root = str(Path(__file__).parents[2])
    script.write_text(DYING_RANK.format(root=root, marks=str(marks), deaths=deaths, by=int(by)))
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    torchrun += [f"--nnodes={agents}", f"--nproc-per-node={ranks // agents}"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-id=job", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    torchrun += [f"--max-restarts={len(deaths)}", "--monitor-interval=0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "EVO_DIE_WITH_PARENT": "1"}
    if agents > 1:  # what launchers set for several nodes
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with (tmp_path / "torchrun.log").open("w") as log:
        processes = [
            subprocess.Popen([*torchrun, str(script), *arguments(tmp_path)], env=environment, stdout=log, stderr=log)
            for _ in range(agents)
        ]
        try:
            statuses = [process.wait(timeout=60 + 40 * len(deaths)) for process in processes]
        finally:
            for process in processes:
                process.kill()
    said = (tmp_path / "torchrun.log").read_text()
    assert statuses == [0] * agents, said[-3000:]
    assert said.count("resuming from") == len(deaths)
    assert losses(tmp_path / "run") == expected


@pytest.mark.slow
def test_torchrun_restarts_after_the_death_of_a_rank(tmp_path: Path, expected: list[float]) -> None:
    survives_under_torchrun(tmp_path, expected, [(8, 0)])


@pytest.mark.slow
def test_torchrun_restarts_ranks_that_share_a_model(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path, parallel__tensor={"size": 2, "mode": "msp"}, model__drop_rate=0.1)
    survives_under_torchrun(tmp_path, expected, [(8, 1)])


@pytest.mark.slow
def test_torchrun_restarts_the_stages_of_a_pipeline(tmp_path: Path) -> None:
    """One in the middle dies: the one before has sent what nobody takes, the one behind waits for what nobody sends."""
    layout = {"model__num_layers": 3, "model__drop_rate": 0.1, "parallel__pipeline": {"size": 3}}
    expected = undisturbed(tmp_path, ranks=3, **layout)
    survives_under_torchrun(tmp_path, expected, [(8, 1)], ranks=3)


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_does_not_resume_others(tmp_path: Path, expected: list[float]) -> None:
    """Without auto_resume, in a folder where another run's last checkpoint lies: it goes on from its own."""
    changes = {"model__dtype": "torch.float32", "data__total_steps": STEPS, "ckpt__checkpoint_every": 5}
    write_job(tmp_path, ckpt__auto_resume=False, ckpt__keep=1, **changes)
    shutil.copytree(tmp_path / "undisturbed", tmp_path / "ckpt")
    before = sorted(path.name for path in (tmp_path / "ckpt").iterdir())
    survives_under_torchrun(tmp_path, expected, [(8, 1)])
    assert sorted(path.name for path in (tmp_path / "ckpt").iterdir()) == sorted([*before, f"{STEPS}-2"])


@pytest.mark.slow
def test_torchrun_restarts_after_many_deaths(tmp_path: Path, expected: list[float]) -> None:
    steps = [6, 8, 11, 12, 16, 17, 18, 21, 22, 23]
    survives_under_torchrun(tmp_path, expected, [(step, step % 2) for step in steps])


@pytest.mark.slow
def test_two_agents_restart_together(tmp_path: Path, expected: list[float]) -> None:
    """As on two nodes: the agent of the dead rank counts a restart, the other does not."""
    survives_under_torchrun(tmp_path, expected, [(7, 1), (12, 0), (18, 1)], agents=2)

"""Where a process stands, as torchrun and Slurm say it."""

from __future__ import annotations

import pytest

from evo_core.errors import ConfigError
from evo_core.parallel import environment
from evo_core.parallel.environment import read_rank_info

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RUN_ID": "job",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
SRUN = {
    "SLURM_JOB_ID": "12345",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_STEP_NODELIST": "n[1-2]",
}


def test_nothing_means_one_process() -> None:
    info = read_rank_info({})
    assert (info.launcher, info.rank, info.world_size, info.master) == ("single", 0, 1, None)


def test_torchrun() -> None:
    info = read_rank_info(TORCHRUN)
    assert (info.launcher, info.rank, info.world_size, info.local_rank) == ("torch", 3, 4, 1)
    assert (info.local_world_size, info.nodes, info.attempt) == (2, 2, 2)
    assert info.master == ("10.0.0.1", 29400)
    assert info.agent_store


def test_a_step_of_several_tasks_is_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def scontrol(*args: str) -> str:
        asked.append(args)
        return "n1\nn2\n" if args[1] == "hostnames" else "NodeName=n1 NodeAddr=10.1.2.3 NodeHostName=n1 Port=0"

    monkeypatch.setattr(environment, "_scontrol", scontrol)
    info = read_rank_info(SRUN)
    assert (info.launcher, info.rank, info.world_size) == ("slurm", 9, 16)
    assert (info.local_rank, info.local_world_size, info.nodes) == (1, 8, 2)
    assert info.master == ("10.1.2.3", 20000 + 12345 % 10000)
    assert asked == [("show", "hostnames", "n[1-2]"), ("show", "node", "n1", "-o")]


def test_the_environment_may_name_the_master() -> None:
    assert read_rank_info({**SRUN, "MASTER_ADDR": "h", "MASTER_PORT": "7"}).master == ("h", 7)
    assert read_rank_info({**SRUN, "MASTER_ADDR": "h", "MASTER_PORT": "7"}, host="g", port=8).master == ("g", 8)


def test_the_shell_of_a_batch_job_is_one_process() -> None:
    """sbatch's own shell has SLURM_NTASKS and SLURM_PROCID too, but is no step of several tasks."""
    assert read_rank_info({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"}).launcher == "single"


def test_torchrun_inside_a_slurm_step_is_torchrun() -> None:
    assert read_rank_info({**SRUN, **TORCHRUN}).launcher == "torch"
    assert read_rank_info({**SRUN, **TORCHRUN, "MASTER_ADDR": "h"}, launcher="slurm").launcher == "slurm"


def test_uneven_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    info = read_rank_info({**SRUN, "MASTER_ADDR": "h", "SLURM_STEP_TASKS_PER_NODE": "3(x2),1", "SLURM_NODEID": "2"})
    assert (info.nodes, info.local_world_size) == (3, 1)


@pytest.mark.parametrize(("launcher", "hint"), [("torch", "torchrun"), ("slurm", "srun"), ("pbs", "torch or slurm")])
def test_insisting_on_a_launcher_that_is_not_there(launcher: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        read_rank_info({}, launcher)


def test_without_scontrol_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def scontrol(*args: str) -> str:
        raise FileNotFoundError("scontrol")

    monkeypatch.setattr(environment, "_scontrol", scontrol)
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        read_rank_info(SRUN)

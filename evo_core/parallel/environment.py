"""Who this process is among the ranks, read from torchrun's or Slurm's environment.

Pure reading: nothing is connected here. `evo_core.parallel.process_group` makes the process group out of it.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evo_core.errors import ConfigError
from evo_core.process import start_time

Launcher = Literal["torch", "slurm", "single"]

_TORCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class RankInfo:
    """Who a process is among all.

    Attributes:
        launcher: who started it; "single" is one process on its own.
        master: host and port of rank 0's store, None for one process.
        nodes: machines, as far as the launcher says.
        agent_store: torchrun already serves a store at `master` (it is shared by all attempts of a restarted job).
        attempt: how often torchrun has restarted the ranks.
    """

    launcher: Launcher
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master: tuple[str, int] | None = None
    nodes: int = 1
    agent_store: bool = False
    run_id: str = "evo"
    attempt: int = 0


def read_rank_info(
    environ: Mapping[str, str], launcher: str | None = None, host: str | None = None, port: int | None = None
) -> RankInfo:
    """Find out who this process is among all.

    Args:
        environ: the environment.
        launcher: "torch" or "slurm" to insist on one; None lets the environment decide: torchrun's variables, else a
            Slurm step with several tasks, else one process.
        host: address of rank 0, where the environment's is not wanted.
        port: its port.

    Raises:
        ConfigError: the launcher that was asked for left no variables here.
    """
    chosen = launcher or _launcher(environ)
    if chosen == "torch":
        return _torch_info(environ, host, port)
    if chosen == "slurm":
        return _slurm_info(environ, host, port)
    if chosen == "single":
        return RankInfo("single")
    raise ConfigError(f"unknown launcher {chosen!r}", key="--launcher", hint="torch or slurm")


def restarts(environ: Mapping[str, str]) -> int:
    """How often these ranks were started again, by torchrun or by Slurm."""
    return sum(int(environ.get(name) or 0) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def launch_marks(environ: Mapping[str, str]) -> list[str]:
    """What started this process and would start it again: a restart finds the same marks, another launch others."""
    marks = []
    if "TORCHELASTIC_RUN_ID" in environ:  # ids are used again, a living agent is not
        agent = os.getppid()
        marks.append(f"torchrun {socket.gethostname()} {agent} {start_time(agent)}")
    if "SLURM_JOB_ID" in environ:
        marks.append(f"slurm {environ.get('SLURM_CLUSTER_NAME', '')} {environ['SLURM_JOB_ID']}")
    return marks


def _launcher(environ: Mapping[str, str]) -> str:
    if all(name in environ for name in _TORCH):
        return "torch"
    # Set by srun for its tasks; sbatch's own shell, where SLURM_NTASKS may be large as well, does not have it.
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return "slurm"
    return "single"


def _torch_info(environ: Mapping[str, str], host: str | None, port: int | None) -> RankInfo:
    missing = [name for name in _TORCH if name not in environ]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not set", key="--launcher torch", hint="start the command with torchrun"
        )
    world_size = int(environ["WORLD_SIZE"])
    local_world_size = int(environ.get("LOCAL_WORLD_SIZE", world_size))
    return RankInfo(
        "torch",
        rank=int(environ["RANK"]),
        world_size=world_size,
        local_rank=int(environ.get("LOCAL_RANK", environ["RANK"])),
        local_world_size=local_world_size,
        master=(host or environ["MASTER_ADDR"], port or int(environ["MASTER_PORT"])),
        nodes=int(environ.get("GROUP_WORLD_SIZE", -(-world_size // local_world_size))),
        agent_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        run_id=environ.get("TORCHELASTIC_RUN_ID", "evo"),
        attempt=int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def _slurm_info(environ: Mapping[str, str], host: str | None, port: int | None) -> RankInfo:
    if "SLURM_PROCID" not in environ:
        raise ConfigError("SLURM_PROCID not set", key="--launcher slurm", hint="start the command with srun")
    world_size = int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1)
    per_node = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE") or str(world_size))
    node = int(environ.get("SLURM_NODEID", "0"))
    master = None
    if world_size > 1:
        port = port or int(environ.get("MASTER_PORT") or _slurm_port(environ))
        master = (host or environ.get("MASTER_ADDR") or _slurm_address(environ), port)
    return RankInfo(
        "slurm",
        rank=int(environ["SLURM_PROCID"]),
        world_size=world_size,
        local_rank=int(environ.get("SLURM_LOCALID", "0")),
        local_world_size=per_node[node] if node < len(per_node) else 1,
        master=master,
        nodes=len(per_node),
        run_id=environ.get("SLURM_JOB_ID", "evo"),
    )


def _tasks_per_node(text: str) -> list[int]:
    """``"2(x3),1"`` is three nodes with two tasks and one with one."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def _slurm_port(environ: Mapping[str, str]) -> int:
    """A port that every task of a step computes alike and that two steps on one node do not share."""
    job, step = (int(environ.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return 20000 + (job + 131 * step) % 10000


def _slurm_address(environ: Mapping[str, str]) -> str:
    """The address of the step's first node. Its name need not resolve on the others, so Slurm's NodeAddr is used."""
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    try:
        head = _scontrol("show", "hostnames", nodes).split()[0]
        described = re.search(r"\bNodeAddr=(\S+)", _scontrol("show", "node", head, "-o"))
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise ConfigError(
            f"cannot ask scontrol for the address of the first node of {nodes!r}: {error}",
            key="--host",
            hint="set MASTER_ADDR or --host to the address of the first node",
        ) from error
    return described.group(1) if described else head


def _scontrol(*args: str) -> str:
    return subprocess.run(["scontrol", *args], check=True, capture_output=True, text=True, timeout=60).stdout

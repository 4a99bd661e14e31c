"""What it means to launch a command on one or many nodes, whoever does it.

A step kind that computes on a model describes a `Job`; a `Launcher` runs it and returns when it has ended. The
launcher keeps what it needs to find the job again in the key's state folder, so that a second caller (another
`evo run`, or the same one after a crash) attaches to a job that still lives instead of starting a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from evo_core.config.durations import seconds
from evo_core.config.suggest import suggest
from tasks.launch.causes import CauseName

_CAUSES = ", ".join(get_args(CauseName))


def _by_known_causes(value: Any) -> Any:
    """One error that names the causes, in place of one for each form that a budget may have."""
    for name in value if isinstance(value, dict) else ():
        if name not in get_args(CauseName):
            raise ValueError(f"{name!r} is no cause{suggest(str(name), get_args(CauseName))}; there are {_CAUSES}")
    numbers = value.values() if isinstance(value, dict) else (value,)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a number of 0 or more, or one for each of " + _CAUSES)
    return value


def _with_unit(value: str) -> str:
    """A plain number would be minutes for Slurm and seconds for everybody else."""
    if value.strip().isdecimal() or seconds(value) < 60:
        raise ValueError(f"{value!r} is no wall time of a minute or more: write 48h, 30m or 2-00:00:00")
    return value


WallTime = Annotated[str, AfterValidator(_with_unit)]
"""How long a job may run: ``48h``, ``30m``, ``2-00:00:00``."""

_AtLeast0 = Annotated[int, Field(ge=0)]
Budget = Annotated[_AtLeast0 | dict[CauseName, _AtLeast0], BeforeValidator(_by_known_causes)]
"""Restarts for each cause of failure: one number for all of them, or a number a cause."""


class LaunchRuntime(BaseModel):
    """Where and how a launched step runs. Never part of an artifact's identity."""

    model_config = ConfigDict(extra="forbid")

    cluster: str = Field("local", description="a name in configs/clusters/ or a path to such a file")
    nodes: int = Field(1, ge=1, description="machines")
    ranks_per_node: int | None = Field(None, ge=1, description="processes a node; default gpus_per_node, else 1")
    gpus_per_node: int = Field(0, ge=0, description="GPUs asked for on each node")
    cpus_per_rank: int | None = Field(None, ge=1, description="cores for each process")
    time: WallTime | None = Field(None, description="wall time to ask Slurm for: 48h, 30m, 2-00:00:00")
    max_restarts: Budget = Field(
        3,
        description="restarts for each cause of failure before the job counts as failed; or one number a cause: "
        "{node: 10, out_of_memory: 1}",
    )
    on_walltime: Literal["requeue", "fail"] = Field(
        "requeue", description="what to do on Slurm when the time is up and a checkpoint is saved"
    )

    @property
    def ranks(self) -> int:
        """Processes on each node."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.nodes * self.ranks


def launch_runtime(runtime: object) -> LaunchRuntime | None:
    """What a step's runtime asks a launcher for; None for a step that is made in the run's own process.

    A kind that launches only now and then has it as the property ``launch`` of its runtime.
    """
    asked = runtime if isinstance(runtime, LaunchRuntime) else getattr(runtime, "launch", None)
    return asked if isinstance(asked, LaunchRuntime) else None


@dataclass(frozen=True)
class Job:
    """One command on the nodes that its runtime asks for.

    `name` carries the key of the artifact, so that a job can be looked up by it. `state` is the key's state folder:
    the command finds it as EVO_JOB_FOLDER and leaves progress.json and error.json there. `log` collects what every
    rank prints and is appended to across restarts.

    With `tasks` it is an array of that many single processes, each of which finds its number in SLURM_ARRAY_TASK_ID and
    has a job folder of its own in the state folder (`record.task_folder`), with its log.
    """

    name: str
    module: str
    args: tuple[str, ...]
    state: Path
    log: Path
    runtime: LaunchRuntime
    attempt: int
    environment: Mapping[str, str] = field(default_factory=dict)
    tasks: int = 0

    def __post_init__(self) -> None:
        for path in ("state", "log"):  # other processes, elsewhere, read and write them
            object.__setattr__(self, path, getattr(self, path).absolute())


class JobFailed(Exception):
    """The job ended by itself without success.

    `message` is the job's own error where it left one (error.json), else the last lines of its log.
    """

    def __init__(self, message: str, *, user_error: bool = False, log: Path | None = None) -> None:
        super().__init__(message)
        self.message, self.user_error, self.log = message, user_error, log


class Stopped(BaseException):
    """The run was told to stop. A BaseException, so that nothing on the way takes it for a failure."""


class Launcher(Protocol):
    """Runs jobs on one kind of cluster."""

    def preflight(self, runtime: LaunchRuntime | None = None) -> None:
        """Raise `ConfigError` when this cluster cannot be used from here (no sbatch, controller silent).

        Args:
            runtime: what a step will ask for: a job like that must not be one that the cluster would never take.
        """

    def alive(self, state: Path) -> bool:
        """Whether a job recorded in the state folder is still queued or running."""

    def run(
        self,
        job: Job,
        *,
        stop: threading.Event,
        on_progress: Callable[[dict[str, Any]], None],
        on_line: Callable[[str], None],
    ) -> None:
        """Run the job, or attach to the one recorded in `job.state` if it is alive, and return when it succeeded.

        Raises:
            JobFailed: it ended without success.
            Stopped: `stop` was set. A local job is then ended and waited for; a Slurm job is left running.
        """

    def cancel(self, state: Path) -> str | None:
        """End the job recorded in the state folder, if any is alive; returns what was ended, for the log."""

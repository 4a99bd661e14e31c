"""Slurm's command line, and nothing else: one method a command, plain values in and out.

Only forms that have stayed the same from release to release are read: ``sbatch --parsable``, ``squeue -o``,
``scontrol ping``, ``sacct -P``. Each call has a time limit, for a client whose controller is away can hang.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.launch.environment import clean_environment

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol")

_NOBODY_ANSWERS = re.compile(
    r"unable to contact|connect failure|connection (refused|timed out|reset)|timed out|timeout|try again|"
    r"temporarily (unavailable|unable|disabled)|backup controller|communication|resource temporarily|"
    r"unable to resolve|could not establish a configuration source|zero bytes",
    re.IGNORECASE,
)
_UNKNOWN_JOB = re.compile(r"invalid job id|job/step already completing or completed|does not exist", re.IGNORECASE)


class SlurmSilent(Exception):
    """No answer: the controller is away, or busy, or the client timed out. Nothing follows from it; ask again."""


class SlurmRefused(Exception):
    """Slurm answered, and said no."""


@dataclass(frozen=True)
class Seen:
    """A job as Slurm shows it.

    Attributes:
        state: Slurm's word for it in capitals (PENDING, RUNNING, ...), without what may follow.
        reason: why it waits, or how it ended.
        nodes: the nodes it has, in Slurm's notation; empty while it waits.
    """

    job_id: str
    state: str
    reason: str = ""
    nodes: str = ""


def _tasks_of(job_id: str, rows: Sequence[Seen]) -> dict[int, Seen]:
    """Rows whose number is ``ARRAY_TASK``, by task. What stands for several at once (``12_[0-3]``) is left out."""
    numbers = [row.job_id.removeprefix(f"{job_id}_") for row in rows]
    return {int(number): row for number, row in zip(numbers, rows, strict=True) if number.isdecimal()}


class SlurmCommands:
    """The clients found on PATH, talking to the cluster that SLURM_CONF (or the system's file) names."""

    def __init__(self, timeout: float = 30.0) -> None:
        self.timeout = timeout
        self.accounting_silent = False
        """Whether slurmdbd gave no answer when it was last asked, where there is one."""

    def missing(self) -> list[str]:
        """Programs that are not installed here."""
        return [name for name in PROGRAMS if shutil.which(name) is None]

    def ping(self) -> None:
        """Ask whether a controller is up.

        Raises:
            SlurmSilent: none is.
        """
        try:
            answer = self._call("scontrol", "ping")
        except SlurmRefused as refused:
            raise SlurmSilent(str(refused)) from None
        if " UP" not in answer:
            raise SlurmSilent(" ".join(answer.split()))

    def partitions(self) -> list[str]:
        """Names of the partitions that jobs can be sent to."""
        return sorted(set(self._call("sinfo", "-h", "-o", "%R").split()))

    def nodes(self, partition: str | None) -> dict[str, str]:
        """Nodes by name, each with its state ("idle", "down*", ...).

        Args:
            partition: one or several after commas; None means the one that jobs go to by default.

        Raises:
            SlurmSilent: no answer.
            SlurmRefused: Slurm said no.
        """
        answer = self._call("sinfo", "-h", "-N", "-o", "%N|%T|%P")
        rows = [row.split("|", 2) for row in answer.splitlines() if row.count("|") >= 2]
        wanted = partition.split(",") if partition else None
        return {
            name: state
            for name, state, found in rows
            if (found.endswith("*") if wanted is None else found.rstrip("*") in wanted)
        }

    def host_names(self, nodes: str) -> list[str]:
        """The nodes that Slurm's notation (``node[1-3]``) stands for."""
        return self._call("scontrol", "show", "hostnames", nodes).split() if nodes else []

    def exclude(self, job_id: str, nodes: Sequence[str]) -> None:
        """Keep a job that waits away from nodes; takes the place of what it was kept away from before.

        Raises:
            SlurmSilent: no answer.
            SlurmRefused: it does not wait any more, or Slurm does not know a node.
        """
        self._call("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(nodes)}")

    def submit(
        self, arguments: Sequence[str], script: Path, variables: Mapping[str, str], *, hold: int | None = None
    ) -> str:
        """Submit a batch script; returns the job's id.

        Args:
            variables: laid over this process's environment, which the job gets.
            hold: a descriptor that `sbatch` keeps open while it runs.

        Raises:
            SlurmSilent: it is not known whether the job was taken.
            SlurmRefused: it was not.
        """
        environment = {**clean_environment(), **variables}
        answer = self._call("sbatch", "--parsable", *arguments, str(script), environment=environment, hold=hold)
        job_ids = [line.partition(";")[0].strip() for line in answer.splitlines()]  # a site's wrapper may greet first
        job_id = next((word for word in reversed(job_ids) if word.isdecimal()), None)
        if job_id is None:
            raise SlurmRefused(f"sbatch answered {answer.strip()!r} instead of a job id")
        return job_id

    def test(self, arguments: Sequence[str]) -> None:
        """Ask whether a job with these options would be taken, and submit none.

        Raises:
            SlurmSilent: no answer.
            SlurmRefused: it would not.
        """
        self._call("sbatch", "--test-only", *arguments, "--wrap=true")

    def look(self, job_id: str) -> Seen | None:
        """The job as the controller knows it; None when it does not know it (any more).

        Raises:
            SlurmSilent: no answer.
        """
        try:
            rows = self._squeue("-j", job_id)
        except SlurmRefused as refused:
            if _UNKNOWN_JOB.search(str(refused)):
                return None
            raise SlurmSilent(str(refused)) from None
        return next((row for row in rows if row.job_id == job_id), None)

    def find(self, name: str, since: float) -> str | None:
        """The id of the job with this name, submitted at `since` (unix seconds) or later; None when there is none.

        Raises:
            SlurmSilent: no answer.
        """
        try:
            rows = self._squeue("-n", name, number="%F")  # of a task, the array's
        except SlurmRefused as refused:
            raise SlurmSilent(str(refused)) from None
        if rows:
            return rows[-1].job_id
        return next(
            (row.job_id.partition("_")[0] for row in self._sacct("--name", name, since=since, number="JobID")), None
        )

    def account(self, job_id: str, since: float) -> Seen | None:
        """The job as the accounting knows it; None where there is no accounting or it does not answer."""
        return next((row for row in self._sacct("-j", job_id, since=since) if row.job_id == job_id), None)

    def look_tasks(self, job_id: str) -> dict[int, Seen]:
        """The tasks of an array that the controller knows, by number. One question, however many they are.

        Raises:
            SlurmSilent: no answer.
        """
        try:
            rows = self._squeue("-r", "-j", job_id, number="%F_%K")
        except SlurmRefused as refused:
            if _UNKNOWN_JOB.search(str(refused)):
                return {}
            raise SlurmSilent(str(refused)) from None
        return _tasks_of(job_id, rows)

    def account_tasks(self, job_id: str, since: float) -> dict[int, Seen]:
        """The tasks of an array that the accounting knows; none where there is no accounting or no answer."""
        return _tasks_of(job_id, self._sacct("-j", job_id, since=since, number="JobID"))

    def most_tasks(self) -> int | None:
        """How many tasks an array may have here; None where Slurm does not say.

        Raises:
            SlurmSilent: no answer.
            SlurmRefused: this Slurm has no such question.
        """
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", self._call("scontrol", "show", "config"), re.MULTILINE)
        return int(found[1]) if found else None  # it bounds the number of a task, and the first one's is 0

    def cancel(self, job_id: str) -> None:
        """Ask for the end of a job; one that has ended already is no error.

        Raises:
            SlurmSilent: no answer.
            SlurmRefused: it is not ours to end.
        """
        try:
            self._call("scancel", job_id)
        except SlurmRefused as refused:
            if not _UNKNOWN_JOB.search(str(refused)):
                raise

    def _squeue(self, *which: str, number: str = "%A") -> list[Seen]:
        answer = self._call("squeue", "-h", "-t", "all", *which, "-o", f"{number}|%T|%r|%N")
        return [Seen(*row.split("|", 3)) for row in answer.splitlines() if row.count("|") >= 3]

    def _sacct(self, *which: str, since: float, number: str = "JobIDRaw") -> list[Seen]:
        # without a start it looks back to midnight only; an hour is for clocks that differ
        start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - 3600))
        columns = f"{number},State,ExitCode,NodeList"
        try:
            answer = self._call("sacct", "-X", "-P", "-n", "-S", start, *which, "-o", columns)
        except (SlurmSilent, SlurmRefused) as error:
            self.accounting_silent = isinstance(error, SlurmSilent)
            return []
        self.accounting_silent = False
        rows = [row.split("|", 3) for row in answer.splitlines() if row.count("|") >= 3]
        return [Seen(i, state.split()[0], f"exit code {code}", nodes) for i, state, code, nodes in rows if state]

    def _call(
        self, program: str, *arguments: str, environment: dict[str, str] | None = None, hold: int | None = None
    ) -> str:
        try:
            done = subprocess.run(
                [program, *arguments],
                env=environment or {**clean_environment(), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self.timeout,
                pass_fds=() if hold is None else (hold,),
                cwd=os.sep if environment is None else None,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SlurmSilent(f"{program} gave no answer in {self.timeout:.0f} s") from None
        except FileNotFoundError:
            raise SlurmSilent(f"{program} is not installed here") from None
        if done.returncode == 0:
            return done.stdout
        said = " ".join((done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").split())
        raise (SlurmSilent if _NOBODY_ANSWERS.search(said) else SlurmRefused)(f"{program}: {said}")

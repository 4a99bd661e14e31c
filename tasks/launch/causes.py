"""Why a try of a job failed: the cause that its budget of restarts is counted by, and where.

The ranks say it in ``error.json``. A rank that was killed says nothing, and what its peers report is the echo
(communication was lost); so the words of the kernel, of Slurm and of torchrun in the log are read as well. The batch
script of a Slurm job reads the same words with `grep -E`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from evo_core.cause import COMMUNICATION, CRASH, NO_PROGRESS, NODE, OUT_OF_MEMORY
from evo_core.job import STUCK
from tasks.store.json_file import read_object

CauseName = Literal["node", "communication", "out_of_memory", "no_progress", "crash"]
CAUSES: tuple[CauseName, ...] = get_args(CauseName)

KILLED_FOR_MEMORY = (
    r"oom[-_]kill event|Out Of Memory|OOM Killed|Killed by the OOM|[Ee]xceeded (step |job )?memory limit"
)
"""Slurm's words for a process that the kernel ended for its memory."""

NODE_LOST = (
    r"srun: error: (Node failure on|Task launch for .* failed on node|.*Required node not available)|"
    r"CANCELLED .*DUE TO NODE FAILURE"
)
"""Slurm's words for a node that is gone."""

RANK_KILLED = (
    r"exitcode: -(4|6|7|8|9|11)\)|error: [^ :]+: tasks? [0-9,-]+: (Killed|Segmentation fault|Aborted|Bus error)"
)
"""torchrun's and srun's words for a rank that a signal ended, other than the one that asks it to end."""

THEN_ENDED = r"CANCELLED AT|Job step aborted"
"""From here on srun's tasks are ended because another one failed: their ends say nothing."""

_PLACED = re.compile(r" \(rank \d+ on [^()]*\)$")

_WORDS = {
    NODE: "node failure",
    COMMUNICATION: "lost communication",
    OUT_OF_MEMORY: "out of memory",
    NO_PROGRESS: "no progress",
    CRASH: "crash",
}


@dataclass(frozen=True)
class Cause:
    """Why one try failed.

    Attributes:
        name: one of `CAUSES`.
        where: "rank 3 (node2)", "node2"; empty where it is not known.
    """

    name: str
    where: str = ""

    def __str__(self) -> str:
        return in_words(self.name, self.where)


def in_words(name: str, where: str = "") -> str:
    """A cause as people read it."""
    words = _WORDS.get(name, name)
    return f"{words} on {where}" if where else words


def with_cause(cause: Cause, message: str) -> str:
    """A failure's message that begins with its cause and place; a plain crash's says itself what it was."""
    if cause.name == CRASH:
        return message
    return f"{cause}: {_PLACED.sub('', message) if cause.where else message}"


def find_cause(state: Path, status: int, printed: str, *, killed_for_memory: bool = False) -> Cause:
    """The cause of a try that failed.

    Args:
        state: the job folder, with the error that the ranks left.
        status: the try's exit status.
        printed: what the try printed.
        killed_for_memory: whether the kernel ended processes for their memory meanwhile.
    """
    error = read_object(state / "error.json") or {}
    said = error.get("cause")
    if said in CAUSES and said not in (COMMUNICATION, CRASH):
        return Cause(said, _place(error))
    if re.search(NODE_LOST, printed):
        return Cause(NODE)
    before_the_end = re.split(THEN_ENDED, printed, maxsplit=1)[0]
    by_signal = status == 128 + 9 or re.search(RANK_KILLED, before_the_end) is not None
    if re.search(KILLED_FOR_MEMORY, printed) or (killed_for_memory and by_signal):
        return Cause(OUT_OF_MEMORY)
    if status == STUCK:
        return Cause(NO_PROGRESS)
    if said == COMMUNICATION and not by_signal:
        return Cause(COMMUNICATION, _place(error))
    return Cause(CRASH, "" if said == COMMUNICATION else _place(error))


def _place(error: dict[str, object]) -> str:
    rank, host = error.get("rank"), error.get("host")
    return "" if rank is None else f"rank {rank} ({host or 'an unknown host'})"

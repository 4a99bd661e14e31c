"""What kind of trouble an exception is: what decides how often a job that crashed is started again."""

from __future__ import annotations

import re
from collections.abc import Iterator

from evo_core.errors import UserError

USER = "user"
NODE = "node"
COMMUNICATION = "communication"
OUT_OF_MEMORY = "out_of_memory"
NO_PROGRESS = "no_progress"
CRASH = "crash"

# Types are known by their names: torch is not loaded here, and need not be installed.
_TYPES = {
    "OutOfMemoryError": OUT_OF_MEMORY,
    "MemoryError": OUT_OF_MEMORY,
    "Stuck": NO_PROGRESS,
    "DistError": COMMUNICATION,  # of which torch's DistBackendError, DistNetworkError and DistStoreError are kinds
}
_WORDS = (
    (NODE, r"uncorrectable (NVLink|ECC) error|fallen off the bus|GPU is lost|hardware stack error"),
    (OUT_OF_MEMORY, r"out of memory|can't allocate memory|_STATUS_ALLOC_FAILED"),
    (COMMUNICATION, r"gloo/transport|connectFullMesh|NCCL error|ncclSystemError|ncclRemoteError|ProcessGroupNCCL"),
)
"""Plain RuntimeErrors of torch's: a part of their messages."""


def cause_of(error: BaseException) -> str:
    """The kind of trouble: "user", "node", "communication", "out_of_memory", "no_progress" or "crash".

    An error that others were raised from or during counts as a whole: what the ranks say of each other while they end
    (communication) is taken for the cause only where nothing else is known.
    """
    if isinstance(error, UserError):
        return USER
    found = [cause for one in _chain(error) if (cause := _own_cause(one)) != CRASH]
    return next((cause for cause in found if cause != COMMUNICATION), found[0] if found else CRASH)


def _own_cause(error: BaseException) -> str:
    names = [kind.__name__ for kind in type(error).__mro__]
    by_type = next((_TYPES[name] for name in names if name in _TYPES), CRASH)
    if by_type in (CRASH, COMMUNICATION) and isinstance(error, RuntimeError):
        return next((cause for cause, words in _WORDS if re.search(words, str(error), re.IGNORECASE)), by_type)
    return by_type


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from or during, and so on."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)

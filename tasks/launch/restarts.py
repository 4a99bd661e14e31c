"""When a job that crashed is started again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from evo_core.cause import NODE
from tasks.launch.causes import CAUSES, Cause, CauseName

STALLED = 2
"""Tries in a row without any progress after which a job is given up: what fails at its start fails again."""

DEFAULT = 3
"""Restarts for a cause that a mapping of budgets does not name."""


def budgets(most: int | Mapping[CauseName, int]) -> dict[str, int]:
    """How many restarts each cause allows; a number is meant for each of them."""
    return {cause: most if isinstance(most, int) else most.get(cause, DEFAULT) for cause in CAUSES}


class Restarts:
    """The budgets of one job, one for each cause.

    A crash is followed by another try, from the newest checkpoint, as often as its cause allows; but a job that
    crashes twice in a row before it has reported any progress has a fault that trying again does not mend, unless
    nodes were at fault.
    """

    def __init__(self, most: int | Mapping[CauseName, int]) -> None:
        self.most = budgets(most)
        self.used: Counter[str] = Counter()
        self._without_progress = 0

    def another(self, cause: Cause, progressed: bool) -> bool:
        """Whether to try again after a failure; counts the try.

        Args:
            progressed: whether the try that failed had reported progress.
        """
        self._without_progress = 0 if progressed else self._without_progress + (cause.name != NODE)
        if self.used[cause.name] >= self.most[cause.name] or self._without_progress >= STALLED:
            return False
        self.used[cause.name] += 1
        return True

    def budget(self, cause: Cause) -> str:
        """Where a cause's budget stands: "restart 1 of 3"."""
        return f"restart {self.used[cause.name]} of {self.most[cause.name]}"

    def tries(self) -> str:
        """What to add to the last failure's message."""
        return f" (tried {self.used.total() + 1} times)" if self.used else ""

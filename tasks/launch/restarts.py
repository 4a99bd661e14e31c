"""When a job that crashed is started again."""

from __future__ import annotations

STALLED = 2
"""Tries in a row without any progress after which a job is given up: what fails at its start fails again."""


class Restarts:
    """The budget of one job.

    A crash is followed by another try, from the newest checkpoint, up to `most` times; but a job that crashes twice
    in a row before it has reported any progress has a fault that trying again does not mend.
    """

    def __init__(self, most: int) -> None:
        self.most, self.used, self._without_progress = most, 0, 0

    def another(self, progressed: bool) -> bool:
        """Whether to try again after a crash; counts the try.

        Args:
            progressed: whether the try that crashed had reported progress.
        """
        self._without_progress = 0 if progressed else self._without_progress + 1
        if self.used >= self.most or self._without_progress >= STALLED:
            return False
        self.used += 1
        return True

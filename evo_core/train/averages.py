"""The moving averages of InternEvo's log: tokens per rank and second over several stretches of steps."""

from __future__ import annotations

from collections import deque


class SpeedAverages:
    """Takes steps as they are done; a resumed run begins anew."""

    def __init__(self) -> None:
        self._tokens = self._seconds = self._speeds = 0.0
        self._steps = 0
        self._recent: deque[tuple[float, float]] = deque(maxlen=50)
        self._blocks = {10: 0.0, 50: 0.0}

    def add(self, tokens: float, seconds: float) -> dict[str, float]:
        """The averages after one more step.

        Args:
            tokens: of the step, per rank.

        Returns:
            Under ``tgs/``: ``last_tgs_1`` of the step; ``tgs_all``, all tokens over all seconds; ``tgs_avg``, the mean
            over steps of their speeds; ``tgs_SMA``, tokens over seconds of the last 50 steps; ``last_tgs_10`` and
            ``last_tgs_50``, the same of the last whole block of so many steps, 0 before there is one.
        """
        self._steps += 1
        self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds
        self._speeds += tokens / seconds
        self._recent.append((tokens, seconds))
        for size in self._blocks:
            if self._steps % size == 0:
                self._blocks[size] = _speed(list(self._recent)[-size:])
        averages = {
            "last_tgs_1": tokens / seconds,
            "tgs_all": self._tokens / self._seconds,
            "tgs_avg": self._speeds / self._steps,
            "tgs_SMA": _speed(self._recent),
            **{f"last_tgs_{size}": speed for size, speed in self._blocks.items()},
        }
        return {f"tgs/{name}": round(value, 2) for name, value in averages.items()}


def _speed(steps: deque[tuple[float, float]] | list[tuple[float, float]]) -> float:
    return sum(tokens for tokens, _ in steps) / sum(seconds for _, seconds in steps)

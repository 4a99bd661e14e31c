"""How fast long work goes and when it will be done."""

from __future__ import annotations

import time
from typing import Any


class Pace:
    """Starts its clock when it is made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def report(self, done: int, total: int, tokens: int | None = None) -> dict[str, Any]:
        """A progress report: ``done``, ``total``, ``eta_seconds``, and with `tokens` ``tokens_per_second``."""
        seconds = max(time.monotonic() - self._start, 1e-3)
        report: dict[str, Any] = {"done": done, "total": total}
        if tokens is not None:
            report |= {"tokens": tokens, "tokens_per_second": tokens / seconds}
        if done:
            report["eta_seconds"] = seconds * (total - done) / done
        return report

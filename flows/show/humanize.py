"""Numbers as people read them, the same in the console, in Prefect's pages and in the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def count(number: float) -> str:
    """12345678 as ``12.3M``."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= limit:
            return f"{number / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{number:.0f}" if float(number).is_integer() or abs(number) >= 100 else f"{number:.3g}"


def duration(seconds: float) -> str:
    """3725 as ``1h 2m``, 65 as ``1m 5s``, 2.34 as ``2.3s``."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"


def size(number: float) -> str:
    """12345678 bytes as ``12.3 MB``."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.0f} B"


def percent(progress: Mapping[str, Any]) -> float:
    """How far a progress report is, 0 to 100."""
    total = progress.get("total") or 0
    return min(100.0, 100.0 * progress.get("done", 0) / total) if total else 0.0


def progress_line(progress: Mapping[str, Any]) -> str:
    """A progress report in one line: ``120/400 steps · loss 5.321 · 12.3k tokens/s · 1m 5s left``."""
    parts = [f"{count(progress.get('done', 0))}/{count(progress.get('total') or 0)} {progress.get('unit', '')}".strip()]
    if (loss := progress.get("loss")) is not None:
        parts.append(f"loss {loss:.3f}")
    if (rate := progress.get("tokens_per_second")) is not None:
        parts.append(f"{count(rate)} tokens/s")
    if (left := progress.get("eta_seconds")) is not None:
        parts.append(f"{duration(left)} left")
    return " · ".join(parts)


def statistics_line(statistics: Mapping[str, Any]) -> str:
    """An artifact's statistics in one line: its plain numbers, ``tokens 3.1M · loss 4.213``."""
    parts = []
    for name, value in statistics.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        shown = f"{value:.3f}" if isinstance(value, float) else size(value) if name == "bytes" else count(value)
        parts.append(f"{name.replace('_', ' ')} {shown}")
    return " · ".join(parts)

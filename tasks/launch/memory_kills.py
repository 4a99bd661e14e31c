"""How many processes the kernel of this machine has ended for their memory."""

from __future__ import annotations

from pathlib import Path


def memory_kills() -> int:
    """Kills since the machine was started, whatever control group asked for them; 0 where the kernel does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

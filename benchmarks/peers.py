"""Who is measured beside Evo, and how each comes: ``python -m benchmarks.peers``.

The peers of the extra ``bench`` come into this environment, one after the other where all at once do not. litgpt asks
for another torch, so it comes into the folder ``.bench`` of the repository, with what it imports and nothing that it
asks for; benchmarks find it there by PYTHONPATH. A peer that cannot be had is said in one line: the benchmarks leave it
out by name.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
APART = ROOT / ".bench"
LITGPT = ("litgpt", "lightning", "lightning-utilities", "torchmetrics")

Pip = Callable[[Sequence[str]], str | None]
"""Runs pip with these words: None, or in one line why it failed."""


def pip(words: Sequence[str]) -> str | None:
    """Install with this interpreter's pip; a registry that does not answer is given up soon."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "30", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    said = errors or done.stderr.splitlines() or [f"pip ended with status {done.returncode}"]
    return said[0].removeprefix("ERROR:").strip()


def bench_extra() -> list[str]:
    """What the extra ``bench`` asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: list[str] = project["optional-dependencies"]["bench"]
    return found


def install(run: Pip = pip) -> list[str]:
    """Bring every peer. Returns a line for each that could not be had."""
    pinned = ("-c", str(ROOT / "constraints.txt"))
    wanted, missing = bench_extra(), list[str]()
    if run([*pinned, *wanted]) is not None:
        for each in wanted:
            if (why := run([*pinned, each])) is not None:
                missing.append(f"{each} could not be installed and is left out: {why}")
    # The last of them: a folder that an earlier try left half full is filled up.
    if not (APART / LITGPT[-1]).is_dir():
        why = run([*pinned, "--no-deps", "--upgrade", "--target", str(APART), *LITGPT])
        if why is not None:
            missing.append(f"litgpt could not be installed and is left out: {why}")
    return missing


def environment() -> dict[str, str]:
    """This process's, in which litgpt is found too."""
    path = [str(APART), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}


def main() -> None:
    """Bring them, and say what could not be had."""
    for line in install():
        print(line)


if __name__ == "__main__":
    main()

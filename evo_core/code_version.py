"""Which code this is: Evo's version, and the state of the repository that it runs from, if it does."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CORE = Path(__file__).parent
_PATIENCE = 10.0
"""Seconds that git may take; on a network file system it may hang."""


@dataclass(frozen=True)
class GitState:
    """The repository that this code runs from.

    Attributes:
        commit: 40 hex digits.
        modified: whether files that git knows are not as the commit has them; None where git does not say.
    """

    commit: str
    modified: bool | None


def evo_version() -> str | None:
    """The version of Evo; None where it was never installed."""
    return package_version("evo-lm")


def package_version(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def git_state() -> GitState | None:
    """The state of the repository, asked once; None where this code is in none, as in an installed package."""
    return git_state_of(CORE)


def git_state_of(package: Path) -> GitState | None:
    """The state of the repository that a Python package is a part of. One that lies in somebody else's repository, in
    a virtual environment there, is not."""
    if _ask(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, changes = _ask(package, "rev-parse", "HEAD"), _ask(package, "status", "--porcelain", "-uno")
    return GitState(commit, None if changes is None else bool(changes)) if commit else None


def _ask(folder: Path, *words: str) -> str | None:
    """What git prints; None where it fails, or is not there."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of a hook, elsewhere
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True, env=own)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

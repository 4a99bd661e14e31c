"""git: the commit that a manifest names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from flows.doctor.finding import Asked, Finding
from flows.doctor.programs import NoAnswer, answer


def look(asked: Asked) -> Iterator[Finding]:
    """Whether the commit of this code can be told."""
    if shutil.which("git") is None:
        yield Finding("git", "warning", "it is not on PATH: manifests name no commit", "install git")
        return
    folder = Path(__file__).parents[2]
    try:
        version = answer(["git", "--version"], 5).split()[-1]
        if not (folder / ".git").exists():
            yield Finding("git", "ok", f"{version}; this installation is no checkout")
            return
        yield Finding(
            "git", "ok", f"{version}, commit {answer(['git', '-C', str(folder), 'rev-parse', 'HEAD'], 10)[:12]}"
        )
    except NoAnswer as error:
        hint = f"git config --global --add safe.directory {folder}" if "dubious ownership" in str(error) else None
        yield Finding("git", "warning", f"manifests will name no commit: {error}", hint)

"""Save folders as tests look at them from outside, while a run writes into them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from evo_core.checkpoint import verify
from evo_core.checkpoint.folder import MANIFEST
from tests.ranks import run_on_ranks


class Watched(Protocol):
    """A save folder without snapshots."""

    @property
    def location(self) -> str:
        """For ``ckpt.save_ckpt_folder``."""

    def begun(self) -> set[str]:
        """Names of the checkpoint folders, complete or not."""

    def complete(self) -> set[str]:
        """Names of those that have a manifest."""

    def check(self) -> None:
        """Read every complete checkpoint through and compare it with its manifest."""


class Disk:
    """A save folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.location = folder, str(folder)

    def begun(self) -> set[str]:
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return {path.name for path in found if not path.name.startswith(".")}

    def complete(self) -> set[str]:
        return {name for name in self.begun() if (self._folder / name / MANIFEST).exists()}

    def check(self) -> None:
        run_on_ranks(lambda: [verify(self._folder / name).step for name in self.complete()], 1)


def newest(names: set[str]) -> str | None:
    """The name of the checkpoint that was begun last, of one run's."""
    return max(names, key=_age, default=None)


def _age(name: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", name)
    assert match, name
    return int(match[1]), int(match[2] or 1)

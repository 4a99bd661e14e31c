"""Bringing a file into an artifact without a second copy of its bytes, where the file system can."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where it lies on another file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def link_tree(source: Path, target: Path) -> None:
    """The same for every file below a folder."""
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        link_or_copy(path, target / path.relative_to(source))

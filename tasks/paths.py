"""Paths in a pipeline file are relative to that file, so that a pipeline means the same from every folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder", Path())
    return Path(path).expanduser() if Path(path).expanduser().is_absolute() else (Path(folder) / path)


PipelinePath = Annotated[Path, AfterValidator(_beside_the_file)]
"""A pydantic field: a path relative to the pipeline file, or absolute."""

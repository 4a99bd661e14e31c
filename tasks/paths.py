"""Paths in a pipeline file are relative to that file, so that a pipeline means the same from every folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ValidationInfo


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder", Path())
    return Path(path).expanduser() if Path(path).expanduser().is_absolute() else (Path(folder) / path)


def _location(value: object, info: ValidationInfo) -> str:
    if not isinstance(value, str | Path):
        raise ValueError("a path or a URI like s3://bucket/prefix is expected")
    return value.rstrip("/") if isinstance(value, str) and "://" in value else str(_beside_the_file(Path(value), info))


PipelinePath = Annotated[Path, AfterValidator(_beside_the_file)]
"""A pydantic field: a path relative to the pipeline file, or absolute."""

PipelineLocation = Annotated[str, BeforeValidator(_location)]
"""A pydantic field: the same, or a URI such as ``s3://bucket/prefix``."""

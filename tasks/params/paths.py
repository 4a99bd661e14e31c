"""Paths in a pipeline file are relative to that file, so that a pipeline means the same from every folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ValidationInfo

from evo_core.storage.location import LocationError, check_location, is_remote, local_path


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path):
        raise ValueError("a path is expected")
    try:
        path = local_path(value)
    except LocationError as error:
        raise ValueError(str(error)) from None
    return path if path.is_absolute() else Path((info.context or {}).get("folder", Path())) / path


def _location(value: object, info: ValidationInfo) -> str:
    if not isinstance(value, str | Path):
        raise ValueError("a path or a URI like s3://bucket/prefix is expected")
    if not is_remote(value):
        return str(_path(value, info))
    try:
        check_location(value)
    except LocationError as error:
        raise ValueError(str(error)) from None
    return str(value).rstrip("/")


PipelinePath = Annotated[Path, BeforeValidator(_path)]
"""A pydantic field: a path relative to the pipeline file, or absolute."""

PipelineLocation = Annotated[str, BeforeValidator(_location)]
"""A pydantic field: the same, or a URI such as ``s3://bucket/prefix``."""

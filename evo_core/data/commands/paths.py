"""Paths on the command line, written as locations are everywhere."""

from __future__ import annotations

from pathlib import Path

import typer

from evo_core.storage.location import LocationError, local_path


def to_path(text: str) -> Path:
    """The path that an argument means; typer's parser of such arguments, which names the one that is wrong."""
    try:
        return local_path(text)
    except LocationError as error:
        raise typer.BadParameter(str(error)) from None

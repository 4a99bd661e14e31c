"""JSON settings beside weights, which anybody may have written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evo_core.errors import CheckpointError, DataError
from evo_core.storage.files import open_file, write_file
from evo_core.storage.location import Location


def read_json(path: Location) -> dict[str, Any]:
    """The settings in a file.

    Raises:
        CheckpointError: it cannot be read, or holds no settings by name.
    """
    try:
        with open_file(path) as file:
            content = json.loads(file.read())
    except DataError as error:
        raise CheckpointError(f"cannot be read: {error.message}", file=path, hint=error.hint) from error
    except ValueError as error:
        raise CheckpointError(f"cannot be read: {error}", file=path) from error
    except RecursionError:
        raise CheckpointError("cannot be read: it is nested too deeply", file=path) from None
    if not isinstance(content, dict):
        raise CheckpointError("holds no settings", file=path)
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write settings as people read them."""
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

"""JSON settings beside weights, which anybody may have written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evo_core.errors import CheckpointError
from evo_core.storage.files import write_file


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a file.

    Raises:
        CheckpointError: it cannot be read, or holds no settings by name.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read: {error}", file=path) from error
    except RecursionError:
        raise CheckpointError("cannot be read: it is nested too deeply", file=path) from None
    if not isinstance(content, dict):
        raise CheckpointError("holds no settings", file=path)
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write settings as people read them."""
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

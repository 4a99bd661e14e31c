"""What a command prints for a script."""

from __future__ import annotations

import json
from typing import Any


def print_json(value: Any) -> None:
    """Print a value as JSON, readable by a person too."""
    print(json.dumps(value, indent=1, ensure_ascii=False))

"""What a step counted, as its manifest can hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evo_core.errors import UserError
from flows.pipeline.plan import PlannedStep


def plain_statistics(returned: object, step: PlannedStep, folder: Path) -> dict[str, Any]:
    """The statistics that a kind's `run` returned; none (or None) are no statistics. Numpy's numbers become Python's.

    Raises:
        UserError: JSON cannot hold them. Names the entry and the attempt's folder, which is kept: the work is done.
    """
    if returned is None:
        return {}
    hint = f"{type(step.kind).__name__}.run must return a dict that JSON can hold; what it made is kept in {folder}"
    if not isinstance(returned, Mapping):
        raise UserError(f"its statistics are {type(returned).__name__}, not a dict", key=step.name, hint=hint)
    plain = {}
    for name, value in returned.items():
        try:
            plain[name] = json.loads(json.dumps(value, default=_number))
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"its statistics cannot be stored: {name}: {error}", key=step.name, hint=hint) from error
        if not isinstance(name, str):
            raise UserError(f"its statistics have a name that is no text: {name!r}", key=step.name, hint=hint)
    return plain


def _number(value: object) -> object:
    """A number of numpy or torch (a single element) as Python's own."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) in ((), None):
        return item()
    raise TypeError(f"{type(value).__name__} is no plain value")

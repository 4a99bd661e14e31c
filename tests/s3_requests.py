"""What this process asks a store for, as its client says it itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from evo_core.storage.s3.client import client_for
from evo_core.storage.s3.place import place_of


@dataclass
class Requests:
    """Of a block of code.

    Attributes:
        calls: by operation, as "GetObject".
        read: bytes that were asked for and came, by key of the object.
    """

    calls: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)


@contextmanager
def counted(uri: str) -> Iterator[Requests]:
    """Count the requests of the block to the server of a location, in any thread."""
    events, found = client_for(place_of(uri)).meta.events, Requests()

    def begins(params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        context["evo_key"] = params.get("Key", "")

    def ends(model: Any, parsed: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        found.calls[model.name] += 1
        if model.name == "GetObject":
            found.read[context["evo_key"]] += parsed.get("ContentLength", 0)

    events.register("before-parameter-build.s3", begins)
    events.register("after-call.s3", ends)
    try:
        yield found
    finally:
        events.unregister("before-parameter-build.s3", begins)
        events.unregister("after-call.s3", ends)

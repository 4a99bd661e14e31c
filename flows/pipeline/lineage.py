"""From a generated sentence, or any artifact, back to the raw files and the code behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evo_core.errors import UserError
from tasks.raw.listing import RawFile, read_listing
from tasks.store import Artifact, Store


@dataclass(frozen=True)
class Ancestor:
    """One artifact on the way back. `role` is the input it was taken as, `depth` how far back it lies."""

    artifact: Artifact
    role: str
    depth: int

    def record(self) -> dict[str, Any]:
        """As plain data."""
        manifest = self.artifact.manifest
        return {
            "role": self.role,
            "depth": self.depth,
            "step": manifest["step"],
            "kind": manifest["kind"],
            "key": manifest["key"],
            "uri": self.artifact.uri,
            "statistics": manifest["statistics"],
            "git": manifest["provenance"].get("git"),
            "argv": manifest["provenance"].get("argv"),
            "started": manifest["provenance"].get("started"),
            "host": manifest["provenance"].get("host"),
        }


@dataclass(frozen=True)
class FoundSample:
    """A generated text that holds the text looked for."""

    artifact: Artifact
    row: dict[str, Any]


def find_sample(store: Store, text: str) -> FoundSample | None:
    """The newest generation whose prompt and continuation hold `text`."""
    for artifact in reversed([a for a in store.artifacts() if a.type == "samples"]):
        for row in _rows(artifact.path / "samples.jsonl"):
            if text in f"{row['prompt']}{row['text']}" or text in row["text"]:
                return FoundSample(artifact, row)
    return None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The samples in a file; those of a damaged one are passed over, the text looked for may be in another."""
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("prompt"), str) and isinstance(row.get("text"), str):
                yield row
    except (OSError, ValueError, RecursionError):
        return


def start_of(store: Store, text: str) -> tuple[Artifact, dict[str, Any] | None]:
    """What a trace of `text` starts from: a generation that holds it, else the newest artifact it names.

    Raises:
        UserError: it is neither.
    """
    if (sample := find_sample(store, text)) is not None:
        return sample.artifact, sample.row
    if named := store.find(text):
        return named[-1], None
    raise UserError(
        f"no generated text in {store.root} holds {text!r}, and no artifact is named so",
        hint="give words of a sample as they were printed, a step's name, or the start of a key",
    )


def ancestors(store: Store, artifact: Artifact) -> list[Ancestor]:
    """The artifact and everything it was made from, each once, nearest first."""
    return list(_walk(store, artifact, "", 0, set()))


def raw_files(lineage: list[Ancestor]) -> list[RawFile]:
    """Every raw file behind an artifact."""
    return [file for step in lineage if step.artifact.type == "raw" for file in read_listing(step.artifact)]


def _walk(store: Store, artifact: Artifact, role: str, depth: int, seen: set[str]) -> Iterator[Ancestor]:
    if artifact.key in seen:
        return
    seen.add(artifact.key)
    yield Ancestor(artifact, role, depth)
    for name, made_from in artifact.manifest["inputs"].items():
        upstream = store.with_key(made_from["key"])
        if upstream is None:
            raise UserError(
                f"{made_from['from']} ({made_from['key'][:12]}), which this was made from, is not in the store",
                file=artifact.home,
            )
        yield from _walk(store, upstream, name, depth + 1, seen)

"""One artifact in the store: read through its manifest, so that nothing half-written is ever seen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evo_core.errors import UserError
from tasks.store.atomic import read_json


@dataclass(frozen=True)
class Artifact:
    """The artifact in `home` (``artifacts/<step>-<key12>``). It exists once its manifest does."""

    home: Path

    @property
    def exists(self) -> bool:
        """Whether it is committed."""
        return (self.home / "manifest.json").exists()

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Identity, inputs, files with their digests, statistics and provenance."""
        manifest = read_json(self.home / "manifest.json")
        if manifest is None:
            raise UserError("no artifact is committed here", file=self.home)
        return manifest

    @property
    def path(self) -> Path:
        """The folder that holds its files: the attempt that was committed."""
        return self.home / "attempts" / str(self.manifest["attempt"])

    @property
    def uri(self) -> str:
        """Where it is, as it is shown to people."""
        return str(self.home)

    @property
    def key(self) -> str:
        """64 hex digits."""
        return self.manifest["key"]

    @property
    def type(self) -> str:
        """raw, tokenizer, tokens, dataset, model, scores, samples, or a type of the user's own."""
        return self.manifest["type"]

    @property
    def statistics(self) -> dict[str, Any]:
        """What the step counted while it made the artifact."""
        return self.manifest["statistics"]

"""One artifact in the store: read through its manifest, so that nothing half-written is ever seen."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evo_core.errors import DataError, UserError
from tasks.store.json_file import read_json

SHAPE: dict[str, type] = {
    "key": str, "type": str, "kind": str, "step": str, "attempt": int, "identity": dict, "inputs": dict,
}  # fmt: skip
"""What every manifest holds."""
MAY_HOLD: dict[str, type] = {"facts": dict, "statistics": dict, "provenance": dict, "files": list}


@dataclass(frozen=True)
class Artifact:
    """The artifact in `home` (``artifacts/<kind>-<key12>``). It exists once its manifest does."""

    home: Path

    @property
    def exists(self) -> bool:
        """Whether it is committed."""
        return (self.home / "manifest.json").exists()

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Identity, inputs, files with their digests, statistics and provenance.

        Raises:
            UserError: nothing is committed here, or the manifest is damaged.
        """
        path = self.home / "manifest.json"
        manifest = read_manifest(path)
        if manifest is None:
            raise UserError("no artifact is committed here", file=self.home)
        if not self.home.name.endswith(f"-{manifest['key'][:12]}"):
            raise DataError(f"the manifest is damaged: it is that of another key, {manifest['key'][:12]}", file=path)
        return manifest

    def damage(self) -> str | None:
        """What is wrong with it in one line: its manifest, or files that are missing or of another size. None if
        nothing is. Costs one `stat` a file."""
        try:
            wrong = wrong_files(self.path, self.manifest["files"])
        except UserError as error:
            return str(error)
        if not wrong:
            return None
        return ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "") + f" in {self.path}"

    @property
    def path(self) -> Path:
        """The folder that holds its files: the attempt that was committed."""
        return self.home / "attempts" / str(self.manifest["attempt"])

    @property
    def uri(self) -> str:
        """Where it is, as it is shown to people."""
        return str(self.home)

    @property
    def name(self) -> str:
        """What people know it by: the step that made it, and the key's first 12 digits."""
        return f"{self.manifest['step']}-{self.key[:12]}"

    @property
    def key(self) -> str:
        """64 hex digits."""
        return self.manifest["key"]

    @property
    def type(self) -> str:
        """raw, tokenizer, tokens, dataset, model, scores, samples, or a type of the user's own."""
        return self.manifest["type"]

    @property
    def objects(self) -> frozenset[str] | None:
        """Ids of the store's objects that it means; None where it is older than manifests that name them."""
        named = self.manifest.get("objects")
        return None if named is None else frozenset(named)

    @property
    def statistics(self) -> dict[str, Any]:
        """What the step counted while it made the artifact."""
        return self.manifest["statistics"]


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest in `path`, or None where there is none.

    Raises:
        DataError: it is damaged.
    """
    manifest = read_json(path)
    if manifest is None:
        return None
    if not isinstance(manifest, dict):
        raise DataError("the manifest is damaged: it is no JSON object", file=path)
    manifest = {name: type_() for name, type_ in MAY_HOLD.items()} | manifest
    for name, type_ in (SHAPE | MAY_HOLD).items():
        if type(manifest.get(name)) is not type_:
            raise DataError(f"the manifest is damaged: no {name!r} of type {type_.__name__}", file=path)
    objects = manifest.get("objects", [])
    if not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
        raise DataError("the manifest is damaged: no 'objects' that are ids", file=path)
    for made_from in manifest["inputs"].values():
        if not isinstance(made_from, dict) or not all(isinstance(made_from.get(name), str) for name in ("from", "key")):
            raise DataError(f"the manifest is damaged: {made_from!r} is no input", file=path)
    return manifest


def wrong_files(folder: Path, files: Iterable[Any]) -> list[str]:
    """Of the files that a manifest lists, those that are missing or of another size.

    Raises:
        DataError: the list is damaged.
    """
    wrong = []
    for file in files:
        try:
            name, size = str(file["path"]), int(file["size"])
        except (TypeError, KeyError, ValueError, OverflowError):
            raise DataError(f"the manifest is damaged: {file!r} is no file", file=folder) from None
        try:
            found = os.stat(f"{folder}/{name}")  # noqa: PTH116 (asked for a hundred thousand files in a row)
        except (OSError, ValueError):
            wrong.append(f"{name} is missing")
            continue
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            wrong.append(f"{name} has {found.st_size} bytes in place of {size}")
    return wrong

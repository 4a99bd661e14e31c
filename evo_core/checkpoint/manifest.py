"""The manifest: what a complete checkpoint consists of, with a digest of every file. Writing it is the commit."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from evo_core.checkpoint import train_state
from evo_core.checkpoint.about import About
from evo_core.checkpoint.explained import explained
from evo_core.checkpoint.folder import MANIFEST
from evo_core.checkpoint.records import FileRecord
from evo_core.errors import CheckpointError, DamagedError
from evo_core.storage.files import below, create_file, read_if_there
from evo_core.storage.location import Location

FORMAT = 2
"""That is written. In format 1 the states of the optimizer are vectors; in format 2 they have the shapes of weights."""

READABLE = (1, 2)

CONFIG = "config.yaml"
TOKENIZER = "tokenizer"

ALWAYS = (CONFIG, train_state.FILE, "model/.metadata")
"""Files that every checkpoint has."""


@dataclass(frozen=True)
class Manifest:
    """What is in a checkpoint.

    Attributes:
        step: steps behind it.
        tokens: training tokens behind it, over all ranks.
        data_digest: of the order of the training data.
        files: path inside the folder to size and digest.
        tokenizer: path of the tokenizer inside the folder, where there is one.
        written_by: ranks and library versions, or the format it was converted from.
        about: what a training job made it by and from; None where it was converted, or an older version wrote it.
        format: one of `READABLE`.
    """

    step: int
    tokens: int
    data_digest: str
    files: dict[str, FileRecord]
    tokenizer: str | None = None
    written_by: dict[str, Any] = field(default_factory=dict)
    about: About | None = None
    format: int = FORMAT

    def records_of(self, part: str) -> dict[str, FileRecord]:
        """The records of the files in one of its folders, by name."""
        prefix = f"{part}/"
        return {name.removeprefix(prefix): record for name, record in self.files.items() if name.startswith(prefix)}

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        files = {name: record.plain for name, record in self.files.items()}
        return {"format": self.format, **vars(self), "files": files, "about": self.about and asdict(self.about)}

    @property
    def trained_here(self) -> bool:
        """Whether a training job wrote it, and not a conversion from another system's format."""
        return self.written_by.get("converted_from", "evo") == "evo"


def write_manifest(folder: Location, manifest: Manifest) -> None:
    """Complete a checkpoint: the manifest appears whole, and only where there is none.

    Raises:
        OSError: it cannot be written, or there is one.
    """
    path = below(folder, MANIFEST)
    if not create_file(path, json.dumps(manifest.plain, indent=1, allow_nan=False)):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def read_manifest(folder: Location) -> Manifest:
    """Read the manifest of a complete checkpoint.

    Raises:
        DamagedError: there is none, or it is not one.
        CheckpointError: it is another version's, or the store does not answer.
    """
    path = below(folder, MANIFEST)
    with explained(path, "damaged manifest"):
        content = read_if_there(path)
    if content is None:
        raise DamagedError(f"incomplete: there is no {MANIFEST}", file=folder)
    try:
        raw = json.loads(content.decode("utf-8"), object_pairs_hook=_without_twins, parse_constant=_no_number)
        if type(raw["format"]) is not int:
            raise ValueError("its format is no number")
        if raw["format"] not in READABLE:
            readable = " and ".join(map(str, READABLE))
            message = f"written by another version of Evo, in format {raw['format']}; this one reads {readable}"
            raise CheckpointError(message, file=path, hint="read it with the version that wrote it")
        files = {_inside(name): FileRecord.parsed(record) for name, record in raw.pop("files").items()}
        if (about := raw.pop("about", None)) is not None:
            about = About.read(about)
        manifest = Manifest(**raw, files=files, about=about)
        if not all(type(number) is int and number >= 0 for number in (manifest.step, manifest.tokens)):
            raise ValueError("step and tokens are not whole numbers")
        if not isinstance(manifest.written_by, dict):
            raise ValueError("written_by holds no names")
        if manifest.tokenizer is not None:
            _inside(manifest.tokenizer)
        return manifest
    except RecursionError:
        raise DamagedError("damaged manifest: nested too deeply", file=path) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"damaged manifest: {error}", file=path) from error


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two equal keys one would hide the other."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is there twice")
    return result


def _no_number(token: str) -> Any:
    raise ValueError(f"{token} is no JSON")


def _inside(name: str) -> str:
    """A path below the checkpoint's folder, in its one spelling."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or name == ".":
        raise ValueError(f"{name!r} is no file of the checkpoint")
    return name

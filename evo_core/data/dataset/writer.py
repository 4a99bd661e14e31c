"""Writes the shards of one type and split, each with what the dataset's manifest says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from evo_core.data.dataset.inventory import FileInventory, ShardSource
from evo_core.data.dataset.previous_version import PreviousVersion, SelectionPart
from evo_core.data.dataset.scan import document_line
from evo_core.data.dataset.shard_plan import PlannedPart, ShardPlan
from evo_core.data.shards.format import BinReader, BinWriter, meta_path
from evo_core.storage.files import link_or_copy


@dataclass
class ShardWriter:
    """Carries out shard plans below a folder.

    Attributes:
        out: the folder.
        sources, files: the sources of the dataset and the inventory of each.
        shard_tokens: target size; a shard is closed by the document with which it reaches it.
        previous: the version that shards are kept from.
        on_tokens: called with the tokens of documents that were written.
        parts: what each shard is made of; filled.
    """

    out: Path
    sources: Sequence[ShardSource]
    files: Sequence[FileInventory]
    shard_tokens: int
    previous: PreviousVersion | None
    on_tokens: Callable[[int], None]
    parts: dict[str, list[SelectionPart]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._source_of_selection = np.repeat(np.arange(len(self.files)), [len(file.selections) for file in self.files])
        self._first_selection = np.cumsum([0, *(len(file.selections) for file in self.files)])
        self._open = lru_cache(maxsize=4)(BinReader)  # a large file goes into several shards, one after the other

    def origin(self, selection: int) -> str:
        """The raw file of a selection."""
        return self.sources[self._source_of_selection[selection]].origin

    def write(self, plan: ShardPlan) -> list[dict[str, Any]]:
        """Link the shards that are kept, write the others; the manifest's entries, sorted by path."""
        entries = [self._keep(path, parts) for path, parts in plan.kept.items()]
        taken = {entry["path"] for entry in entries}
        names = (f"{plan.split}/{plan.type}/train_{number:03d}.bin" for number in range(10**9))
        free = (name for name in names if name not in taken)
        to_write = list(plan.to_write)
        while to_write:
            entries.append(self._write_shard(next(free), plan, to_write))
        return sorted(entries, key=lambda entry: entry["path"])

    def _keep(self, path: str, parts: list[SelectionPart]) -> dict[str, Any]:
        assert self.previous is not None
        self.parts[path] = parts
        for name in (path, f"{path}.meta"):
            link_or_copy(self.previous.folder / name, self.out / name)
        return self.previous.shards[path]

    def _write_shard(self, path: str, plan: ShardPlan, to_write: list[PlannedPart]) -> dict[str, Any]:
        """Write one shard; takes what went into it from the beginning of `to_write`."""
        parts: list[SelectionPart] = []
        with BinWriter(self.out / path) as writer:
            done = 0
            while done < len(to_write) and writer.tokens < self.shard_tokens:
                planned = to_write[done]
                count, before = 0, writer.tokens
                for line, tokens in self._documents(planned):
                    writer.write_line(line, tokens)
                    count += 1
                    if writer.tokens >= self.shard_tokens:
                        break
                selection, start, stop = planned.part
                parts.append(SelectionPart(selection, start, start + count))
                self.on_tokens(writer.tokens - before)
                if start + count < stop:
                    rest = SelectionPart(selection, start + count, stop)
                    to_write[done] = PlannedPart(rest, planned.shard, planned.first + count, planned.tokens)
                else:
                    done += 1
            del to_write[:done]
        self.parts[path] = _joined(parts)
        return {
            "path": path,
            "type": plan.type,
            "split": plan.split,
            "documents": writer.documents,
            "tokens": writer.tokens,
            "bytes": writer.path.stat().st_size,
            "digest": shard_digest(writer.path),
            "meta_digest": shard_digest(meta_path(writer.path)),
            "origins": list(dict.fromkeys(self.origin(part.selection) for part in parts)),
        }

    def _documents(self, planned: PlannedPart) -> Iterator[tuple[bytes, int]]:
        """(line, tokens) of each document of a part."""
        selection, start, stop = planned.part
        # What a shard of the previous version holds is read from there: which documents of its token file these were
        # is not kept, and would take a scan of the whole file to find out.
        if planned.shard:
            assert self.previous is not None
            reader = self._open(self.previous.folder / planned.shard)
            documents: Sequence[int] | np.ndarray = range(planned.first, planned.first + stop - start)
        else:
            source = self._source_of_selection[selection]
            of_selections = self.files[source].document_numbers
            assert of_selections is not None
            reader = self._open(self.sources[source].bin_path)
            documents = of_selections[selection - self._first_selection[source]][start:stop]
        for document in documents:
            yield document_line(reader, int(document)), int(reader.lengths[document])


def _joined(parts: Sequence[SelectionPart]) -> list[SelectionPart]:
    """Pieces without cuts between those that follow on each other."""
    joined: list[SelectionPart] = []
    for part in parts:
        if joined and joined[-1].selection == part.selection and joined[-1].stop == part.start:
            joined[-1] = SelectionPart(part.selection, joined[-1].start, part.stop)
        else:
            joined.append(part)
    return joined


def shard_digest(path: Path) -> str:
    """The blake3 of a file by which the manifest knows it, hex."""
    from blake3 import blake3

    return blake3().update_mmap(path).hexdigest()

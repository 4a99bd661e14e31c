"""`source.files`: raw text files in a folder or an object store, as they are now."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import Field

from evo_core.config.durations import Duration
from evo_core.data.raw.listing import LeftOut, Listing
from evo_core.errors import ConfigError
from evo_core.storage.listed import Listed
from tasks import kind
from tasks.kind import Facts, Source, StepContext
from tasks.params.paths import PipelineLocation
from tasks.raw.listing import RawFile, object_digest, write_listing
from tasks.raw.selection import list_files
from tasks.store.digests import DigestMemory, FileDigest, combine

INCLUDE = [
    *(f"**/*.{name}{packed}" for name in ("txt", "json", "jsonl") for packed in ("", ".gz", ".zst")),
    "**/*.parquet",
]
"""Every format that `data.tokenize` reads."""

LINES = (".txt", ".jsonl")
"""Files that hold at most a document a line."""


UNSETTLED = "younger than settle"


class Params(kind.Params):
    """What counts as raw text."""

    root: PipelineLocation = Field(
        description="the folder, or s3://bucket/prefix; its sub-folders cn/ en/ code/ ... name the type of text"
    )
    include: list[str] = Field(INCLUDE, description="patterns of files to take")
    exclude: list[str] = Field([], description="patterns of files to leave out")
    settle: Duration = Field(0.0, description="leave out files younger than this: somebody may be writing them")


class Files(Source[Params, kind.Runtime]):
    """Lists and digests the files of a folder; copies nothing.

    A local file's digest is the blake3 of its content, computed once for as long as its size and modification time
    stay; an object's is its ETag, with its size.
    """

    name = "source.files"
    output = "raw"
    params_type = Params

    def digest(self, params: Params, remember: Path) -> tuple[str, Facts]:
        """sha256 over (relative path, digest) of every file; the root itself is not in it."""
        files, lines, _ = _list(params, remember)
        return combine((file.path, file.digest) for file in files), {"lines_by_type": lines, "files": len(files)}

    def run(self, ctx: StepContext[Params, kind.Runtime]) -> dict[str, Any]:
        """Write the listing that the key was made of.

        Raises:
            ConfigError: the folder holds something else by now, or nothing at all.
        """
        files, _, left_out = _list(ctx.params, ctx.store.inventory)
        found = combine((file.path, file.digest) for file in files)
        if ctx.source_digest is not None and found != ctx.source_digest:
            raise ConfigError(
                "the raw files changed while the run was starting",
                file=ctx.params.root,
                hint="run again, or set `settle:` so that files still being written are left out",
            )
        write_listing(ctx.folder, files)
        if left_out.total:
            ctx.say(f"left out: {left_out}")
        return {"files": len(files), "bytes": sum(file.size for file in files), "left_out": left_out.total}


def _list(params: Params, remember: Path) -> tuple[list[RawFile], dict[str, int | None], LeftOut]:
    """Every file that counts, how many documents each type of text has at most (None: nobody knows), and what is left
    out."""
    newest = time.time() - params.settle
    listing = list_files(params.root, params.include, params.exclude)
    if params.settle:
        listing = listing.only(lambda file: file.modified <= newest, UNSETTLED)
    listed = listing.files
    if not any(file.size for file in listed):
        raise _empty(params, listing)
    memory = DigestMemory(remember) if any(not file.tag for file in listed) else None
    files, lines = [], dict[str, int | None]()
    for file in listed:
        known = None if memory is None or file.tag else memory.of_listed(file.uri, file.size, file.mtime_ns)
        digest = known.digest if known else object_digest(file.tag, file.size)
        files.append(RawFile(file.path, file.uri, file.size, digest))
        type_ = file.path.partition("/")[0]
        lines[type_] = _sum(lines.get(type_, 0), _most_documents(file, known))
    if memory is not None:
        memory.save()
    return files, lines, listing.left_out


def _empty(params: Params, listing: Listing) -> ConfigError:
    """Why there is nothing to read."""
    left_out, young = listing.left_out, listing.left_out.counts.get(UNSETTLED, 0)
    if young:
        message = f"the corpus is empty: {young:,} files under {params.root} are younger than settle"
        hint = "wait until they are settled, or lower `settle`"
    elif listing.files:
        message = f"the corpus is empty: every file under {params.root} that matches is empty ({len(listing.files):,})"
        hint = "put text into them"
    else:
        message = f"the corpus is empty: no file with text under {params.root} matches {', '.join(params.include)}"
        hint = "put .txt or .jsonl files there, or change `include` or `exclude`"
    return ConfigError(message, key="root", hint=f"{hint}; left out: {left_out}" if left_out.total else hint)


def _most_documents(file: Listed, known: FileDigest | None) -> int | None:
    """A bound on a file's documents, where one is known without reading it."""
    return known.lines if known and file.path.lower().endswith(LINES) else None


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b

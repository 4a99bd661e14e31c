"""`source.files`: raw text files in a folder, as they are now."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import Field

from evo_core.errors import ConfigError
from tasks import kind
from tasks.durations import Duration
from tasks.kind import Facts, Source, StepContext
from tasks.paths import PipelinePath
from tasks.raw import RawFile, write_listing
from tasks.store.digests import DigestMemory, combine


class Params(kind.Params):
    """What counts as raw text."""

    root: PipelinePath = Field(description="the folder; its sub-folders cn/ en/ code/ ... name the type of text")
    include: list[str] = Field(["**/*.txt", "**/*.json", "**/*.jsonl", "**/*.jsonl.gz", "**/*.jsonl.zst"])
    exclude: list[str] = Field([], description="patterns of files to leave out")
    settle: Duration = Field(0.0, description="leave out files younger than this: somebody may be writing them")


class Files(Source[Params, kind.Runtime]):
    """Lists and digests the files of a folder; copies nothing."""

    name = "source.files"
    output = "raw"
    params_type = Params

    def digest(self, params: Params, remember: Path) -> tuple[str, Facts]:
        """sha256 over (relative path, blake3 of the content) of every file; the root itself is not in it."""
        files, lines = _list(params, remember)
        return combine((file.path, file.digest) for file in files), {"lines_by_type": lines, "files": len(files)}

    def run(self, ctx: StepContext[Params, kind.Runtime]) -> dict[str, Any]:
        files, _ = _list(ctx.params, ctx.store.inventory)
        found = combine((file.path, file.digest) for file in files)
        if ctx.source_digest is not None and found != ctx.source_digest:
            raise ConfigError(
                "the raw files changed while the run was starting",
                file=ctx.params.root,
                hint="run again, or set `settle:` so that files still being written are left out",
            )
        write_listing(ctx.folder, files)
        return {"files": len(files), "bytes": sum(file.size for file in files)}


def _list(params: Params, remember: Path) -> tuple[list[RawFile], dict[str, int]]:
    """Every file that counts, and how many lines each type of text has at most."""
    if not params.root.is_dir():
        raise ConfigError(
            f"the raw folder {params.root} does not exist", key="root", hint="make it, or change the path"
        )
    newest = time.time() - params.settle
    excluded = {path for pattern in params.exclude for path in params.root.glob(pattern)}
    paths = {path for pattern in params.include for path in params.root.glob(pattern)} - excluded
    memory = DigestMemory(remember)
    files, lines = [], dict[str, int]()
    for path in sorted(p for p in paths if p.is_file()):
        if params.settle and path.stat().st_mtime > newest:
            continue
        known = memory.of(path.absolute())
        relative = path.relative_to(params.root).as_posix()
        files.append(RawFile(relative, str(path.absolute()), known.size, known.digest))
        type_ = relative.partition("/")[0]
        lines[type_] = lines.get(type_, 0) + known.lines
    if not any(file.size for file in files):
        raise ConfigError(
            f"the corpus is empty: no file with text under {params.root} matches {', '.join(params.include)}",
            key="root",
            hint="put .txt or .jsonl files there, or change `include`",
        )
    memory.save()
    return files, lines

"""`source.sample_text`: real text that is on this machine already, to try a pipeline without downloading anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from evo_core.errors import ConfigError, DataError
from tasks import kind
from tasks.kind import Facts, Source, StepContext
from tasks.raw.listing import RawFile, write_listing
from tasks.store.digests import combine, digest_file


class Params(kind.Params):
    """How much text of each type."""

    max_bytes: dict[str, int] = Field(
        {"cn": 2_000_000, "en": 2_000_000, "code": 2_000_000}, description="upper bound of bytes per type of text"
    )


class SampleText(Source[Params, kind.Runtime]):
    """English and code from Python's standard library, Chinese from *Romance of the Three Kingdoms*."""

    name = "source.sample_text"
    output = "raw"
    params_type = Params

    def digest(self, params: Params, remember: Path) -> tuple[str, Facts]:
        """Digest of the text that this machine has, and of how much of it is taken.

        Raises:
            ConfigError: it has none, or a type that is asked for is not there.
        """
        from evo_core.data.sample.sample_text import sample_text_digest

        try:
            text = sample_text_digest(params.max_bytes)
        except DataError as error:
            raise ConfigError(error.message, key="uses", hint=error.hint) from error
        return combine([("text", text), *((type_, str(size)) for type_, size in params.max_bytes.items())]), {}

    def run(self, ctx: StepContext[Params, kind.Runtime]) -> dict[str, Any]:
        from evo_core.data.sample.sample_text import write_sample_text

        write_sample_text(ctx.folder, ctx.params.max_bytes)
        files = []
        for path in sorted(p for p in ctx.folder.rglob("*") if p.is_file()):
            known, relative = digest_file(path), path.relative_to(ctx.folder).as_posix()
            files.append(RawFile(relative, f"./{relative}", known.size, known.digest))
        write_listing(ctx.folder, files)
        return {
            "files": len(files),
            "bytes": sum(file.size for file in files),
            "bytes_by_type": _bytes_by_type(files),
        }


def _bytes_by_type(files: list[RawFile]) -> dict[str, int]:
    total: dict[str, int] = {}
    for file in files:
        type_ = file.path.partition("/")[0]
        total[type_] = total.get(type_, 0) + file.size
    return total

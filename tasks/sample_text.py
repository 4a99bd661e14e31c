"""`source.sample_text` and `source.sample_instructions`: real text that is on this machine already.

They are there to try a pipeline without downloading anything.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

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


class InstructionParams(kind.Params):
    """How many instructions of each type."""

    max_bytes: dict[str, int] = Field(
        {"cn": 600_000, "code": 600_000}, description="upper bound of bytes per type of instruction"
    )


P = TypeVar("P", Params, InstructionParams)


class _Sample(Source[P, kind.Runtime]):
    """What both share: a digest of where the text comes from, a folder for each type, a listing."""

    output = "raw"

    @abstractmethod
    def text_digest(self, max_bytes: Mapping[str, int]) -> str:
        """Digest of the text that this machine has of these types; DataError if it has none."""

    @abstractmethod
    def write(self, folder: Path, max_bytes: Mapping[str, int]) -> None:
        """Write a sub-folder with the records of each type."""

    def digest(self, params: P, remember: Path) -> tuple[str, Facts]:
        """Digest of the text that this machine has, and of how much of it is taken.

        Raises:
            ConfigError: it has none, or a type that is asked for is not there.
        """
        try:
            text = self.text_digest(params.max_bytes)
        except DataError as error:
            raise ConfigError(error.message, key="uses", hint=error.hint) from error
        return combine([("text", text), *((type_, str(size)) for type_, size in params.max_bytes.items())]), {}

    def run(self, ctx: StepContext[P, kind.Runtime]) -> dict[str, Any]:
        self.write(ctx.folder, ctx.params.max_bytes)
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


class SampleText(_Sample[Params]):
    """English and code from Python's standard library, Chinese from *Romance of the Three Kingdoms*."""

    name = "source.sample_text"
    params_type = Params

    def text_digest(self, max_bytes: Mapping[str, int]) -> str:
        from evo_core.data.sample.sample_text import sample_text_digest

        return sample_text_digest(max_bytes)

    def write(self, folder: Path, max_bytes: Mapping[str, int]) -> None:
        from evo_core.data.sample.sample_text import write_sample_text

        write_sample_text(folder, max_bytes)


class SampleInstructions(_Sample[InstructionParams]):
    """Alpaca records: functions of Python's standard library and what they do, sentences of the novel and the next."""

    name = "source.sample_instructions"
    params_type = InstructionParams

    def text_digest(self, max_bytes: Mapping[str, int]) -> str:
        from evo_core.data.sample.sample_instructions import sample_instructions_digest

        return sample_instructions_digest(max_bytes)

    def write(self, folder: Path, max_bytes: Mapping[str, int]) -> None:
        from evo_core.data.sample.sample_instructions import write_sample_instructions

        write_sample_instructions(folder, max_bytes)


def _bytes_by_type(files: list[RawFile]) -> dict[str, int]:
    total: dict[str, int] = {}
    for file in files:
        type_ = file.path.partition("/")[0]
        total[type_] = total.get(type_, 0) + file.size
    return total

"""`data.tokenize_sft`: files of instructions or conversations to token files in which only the answers are trained on.

As with `data.tokenize`, the samples of one raw file are an object of the store, made once; `data.shard` takes the
artifact as it takes that of `data.tokenize`, and splits it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from evo_core.errors import ConfigError, DataError
from evo_core.storage.files import copy_file
from evo_core.storage.location import is_remote
from tasks import kind
from tasks.kind import Facts, Input, Kind, StepContext
from tasks.launch.launcher import Stopped
from tasks.launch.pace import Pace
from tasks.params.paths import PipelinePath
from tasks.raw.listing import RawFile, read_listing
from tasks.raw.token_objects import DONE, INDEX, TOKENS, index_rows, object_ids
from tasks.raw.unchanged import StillAsListed
from tasks.store.digests import digest_file
from tasks.store.json_file import read_object, write_json
from tasks.store.objects import is_whole
from tasks.tokenize import tokenizer_facts
from tasks.tokenizer import TOKENIZER, tokenizer_in

if TYPE_CHECKING:
    from evo_core.data.sft.samples import SftSettings
    from evo_core.data.sft.write import SftResult


class Params(kind.Params):
    """What the samples are."""

    tokenizer: PipelinePath | None = Field(
        None, description="a tokenizer file, instead of the input `tokenizer`; it enters the key by its content"
    )
    format: str = Field("alpaca", description="alpaca, chat, sharegpt, or a function of yours: package.module:function")
    chat_template: PipelinePath | None = Field(
        None, description="Jinja file for chat and sharegpt; default: the template beside the tokenizer"
    )
    max_length: int = Field(
        2048, ge=2, description="longer samples are cut to as many tokens; those whose prompt fills them are left out"
    )
    bos: bool | None = Field(
        None, description="begin each sample with the begin id; default: yes, with a chat template no"
    )
    eos: bool | None = Field(None, description="end each sample with the end id; default: yes, with a chat template no")
    on_error: Literal["raise", "skip"] = Field(
        "raise", description="what to do with a wrong record; skipped ones count"
    )


class Runtime(kind.Runtime):
    """How many cores."""

    workers: int | None = Field(None, ge=1, description="processes; default one a core")


class TokenizeSft(Kind[Params, Runtime]):
    """One token file for each file of records, and the index of them."""

    name = "data.tokenize_sft"
    version = 2
    inputs = {"raw": Input("raw"), "tokenizer": Input("tokenizer", optional=True, also=("model",))}
    output = "tokens"
    params_type = Params
    runtime_type = Runtime

    def identity(self, params: Params, runtime: Runtime) -> dict[str, Any]:
        return super().identity(params, runtime) | _contents(params)

    def files(self, params: Params) -> list[Path]:
        return [file for file in (params.chat_template,) if file is not None]

    def check(self, params: Params, runtime: Runtime, facts: Mapping[str, Facts], where: str) -> None:
        """Refuse a step without one tokenizer, and a format, a template and a tokenizer that do not go together.

        Raises:
            ConfigError: which of them; DataError where a file of the tokenizer's own is wrong.
        """
        from evo_core.data.sft.formats import BUILT_IN, BY_TEMPLATE, own_function

        if (params.tokenizer is None) == ("tokenizer" not in facts):
            raise ConfigError(
                "no tokenizer is named" if params.tokenizer is None else "two tokenizers are given",
                key=f"{where}.params.tokenizer",
                hint="give a file, or needs: {tokenizer: STEP} with a step that makes one",
            )
        try:
            if params.tokenizer is not None:
                _settings(params, params.tokenizer).encoder()  # which finds what does not go together
            elif params.format not in BUILT_IN:
                own_function(params.format)
            elif params.chat_template is not None and params.format not in BY_TEMPLATE:
                raise DataError("a chat template is for the format chat", key="chat_template", hint="or sharegpt")
        except DataError as error:
            if error.key is not None and error.key not in Params.model_fields:
                raise  # a key of the tokenizer's own files
            key = f"{where}.params.{error.key}" if error.key else where
            raise ConfigError(error.message, file=error.file, key=key, hint=error.hint) from None

    def facts(self, params: Params, runtime: Runtime, facts: Mapping[str, Facts]) -> Facts:
        passed = {k: v for k, v in facts["raw"].items() if k == "lines_by_type"}
        return passed | tokenizer_facts(params.tokenizer, facts)

    def run(self, ctx: StepContext[Params, Runtime]) -> dict[str, Any]:
        settings = _settings(ctx.params, ctx.params.tokenizer or tokenizer_in(ctx.inputs["tokenizer"].path))
        tokenizer = _keep_tokenizer(settings, ctx.folder)
        files = [file for file in read_listing(ctx.inputs["raw"]) if file.size]
        same = [("tokenizer", tokenizer), ("kind", f"{self.name} {self.version}")]
        same += [(name, repr(value)) for name, value in self.identity(ctx.params, ctx.runtime).items()]
        ids = object_ids(files, same)
        ctx.objects.update(ids)
        counts = {i: found for i in ids if (found := read_object(ctx.store.object(i) / DONE)) is not None}
        if ctx.anew:
            counts = {i: found for i, found in counts.items() if is_whole(ctx.store.object(i), DONE)}
        missing = {i: file for i, file in zip(ids, files, strict=True) if i not in counts}
        ctx.say(f"{len(missing)} of {len(files)} files to tokenize, {len(counts)} found in the store")
        counts |= _tokenize(ctx, missing, settings)
        rows = index_rows(files, ids, counts)
        write_json(ctx.folder / INDEX, rows)
        names = ("documents", "tokens", "trained", "cut", "no_room", "skipped")
        totals = {name: sum(row[name] for row in rows) for name in names}
        return {"files": len(files), "files_tokenized": len(missing), **totals}


def _contents(params: Params) -> dict[str, Any]:
    """What enters the key by its content: the tokenizer, the template, and the file of a user's function."""
    from evo_core.data.sft.chat import find_template, tokenizer_config
    from evo_core.data.sft.formats import BUILT_IN, BY_TEMPLATE, own_function
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    contents: dict[str, Any] = {}
    if params.chat_template is not None:
        contents["chat_template"] = digest_file(params.chat_template).digest
    if params.format not in BUILT_IN:
        _, source = own_function(params.format)
        contents["source"] = digest_file(source).digest if source else None
    if params.tokenizer is not None:
        tokenizer = load_tokenizer(params.tokenizer)
        contents["tokenizer"] = tokenizer.digest
        if params.format != "alpaca":  # the names of its special tokens
            contents["tokenizer_config"] = tokenizer_config(tokenizer)
        if params.format in BY_TEMPLATE and params.chat_template is None:
            contents["chat_template"] = find_template(tokenizer).text
    return contents


def _settings(params: Params, tokenizer: Path) -> SftSettings:
    from evo_core.data.sft.samples import SftSettings

    return SftSettings(
        tokenizer=tokenizer,
        record_format=params.format,
        chat_template=params.chat_template,
        max_length=params.max_length,
        bos=params.bos,
        eos=params.eos,
        on_error=params.on_error,
    )


def _keep_tokenizer(settings: SftSettings, artifact: Path) -> str:
    from evo_core.data.sft.write import keep_tokenizer
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(settings.tokenizer)
    keep_tokenizer(tokenizer, settings, artifact / TOKENIZER)
    return tokenizer.digest


def _tokenize(
    ctx: StepContext[Params, Runtime], missing: Mapping[str, RawFile], settings: SftSettings
) -> dict[str, dict[str, int]]:
    """Tokenize the missing files, one after the other, each on all cores; an object is there once it is whole."""
    from evo_core.cores import cores
    from evo_core.process import die_with_parent

    if not missing:
        return {}
    workers = ctx.runtime.workers or cores()
    total, pace, counts = sum(file.size for file in missing.values()), Pace(), dict[str, dict[str, int]]()
    done = tokens = 0
    # In a process of its own: there a user's module is read as it is now, and a stop can end it.
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=die_with_parent)
    try:
        with StillAsListed(ctx.store.inventory) as check:
            for object_id, file in missing.items():
                check.before(file)
                folder = ctx.store.object(object_id)
                folder.mkdir(parents=True, exist_ok=True)
                future = pool.submit(_tokenize_file, file, folder, settings, workers)
                while not wait([future], timeout=0.2, return_when=FIRST_COMPLETED).done:
                    if ctx.stop.is_set():
                        raise Stopped(f"{len(missing) - len(counts)} files are left to tokenize")
                counts[object_id] = found = _counts(future.result())
                check.after(file, lambda folder=folder, found=found: write_json(folder / DONE, found))  # type: ignore[misc]
                done, tokens = done + file.size, tokens + found["tokens"]
                ctx.on_progress({"unit": "bytes", **pace.report(done, total, tokens)})
    finally:
        for process in list((pool._processes or {}).values()) if ctx.stop.is_set() else []:
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
    return counts


def _tokenize_file(file: RawFile, folder: Path, settings: SftSettings, workers: int) -> SftResult:
    from evo_core.data.sft.write import write_sft_file

    with _local(file, folder) as path:
        return write_sft_file([path], folder / TOKENS, settings, workers=workers)


@contextmanager
def _local(file: RawFile, folder: Path) -> Iterator[Path]:
    """A path at which the file can be read; an object of a store is fetched for as long as that takes."""
    if not is_remote(file.uri):
        yield Path(file.uri)
        return
    fetched = folder / f".raw.{Path(file.path).name}"
    try:
        copy_file(file.uri, fetched)
        yield fetched
    finally:
        fetched.unlink(missing_ok=True)


def _counts(result: SftResult) -> dict[str, int]:
    made = result.splits["train"]
    return {
        "documents": made.samples,
        "tokens": made.tokens,
        "trained": made.trained,
        "cut": result.cut,
        "no_room": result.skipped.no_room,
        "skipped": result.skipped.count,
    }

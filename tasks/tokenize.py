"""`data.tokenize`: raw files to token files, each tokenized once in the life of the store.

The tokens of one raw file are an object of the store whose id follows from the file's bytes, the tokenizer and the
parameters. A run tokenizes the files whose object is not there yet; a killed run loses the files it was at, no more.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from evo_core.errors import ConfigError, DataError
from tasks import kind
from tasks.kind import Facts, Input, Kind, StepContext
from tasks.launch.launcher import Stopped
from tasks.paths import PipelinePath
from tasks.raw import RawFile, read_listing
from tasks.store import Store
from tasks.store.atomic import create_json, read_json, write_json
from tasks.store.digests import combine, digest_file
from tasks.tokenizer import TOKENIZER, keep_tokenizer

if TYPE_CHECKING:
    from evo_core.data.tokenize import TokenizeResult, TokenizeSpec

INDEX = "index.json"
TOKENS = "tokens.bin"
DONE = "object.json"
"""Written last into an object's folder: the object is there once this is."""


class Params(kind.Params):
    """What the tokens are."""

    tokenizer: PipelinePath | None = Field(
        None, description="a tokenizer file, instead of the input `tokenizer`; it enters the key by its content"
    )
    mode: Literal["text", "internevo"] = Field(
        "text", description="text: the named fields; internevo: as its tool does"
    )
    text_keys: list[str] = Field(["text"], description="fields of a JSON record that hold text")
    bos: bool = Field(True, description="begin each document with the begin-of-sequence id")
    eos: bool = Field(True, description="end each document with the end-of-sequence id")
    on_error: Literal["raise", "skip"] = Field(
        "raise", description="what to do with a broken record; skipped ones count"
    )


class Runtime(kind.Runtime):
    """How many cores."""

    workers: int | None = Field(None, ge=1, description="processes; default one a core")


class Tokenize(Kind[Params, Runtime]):
    """One token file for each raw file, and the index of them."""

    name = "data.tokenize"
    inputs = {"raw": Input("raw"), "tokenizer": Input("tokenizer", optional=True)}
    output = "tokens"
    params_type = Params
    runtime_type = Runtime

    def identity(self, params: Params, runtime: Runtime) -> dict[str, Any]:
        payload = super().identity(params, runtime)
        if params.tokenizer is not None:
            from evo_core.data.tokenizers import load_tokenizer

            payload["tokenizer"] = load_tokenizer(params.tokenizer).digest
        return payload

    def check(self, params: Params, runtime: Runtime, facts: Mapping[str, Facts], where: str) -> None:
        if params.tokenizer is None and "tokenizer" not in facts:
            raise ConfigError(
                "no tokenizer is named",
                key=f"{where}.params.tokenizer",
                hint="give a SentencePiece .model or a tokenizer.json, for example InternLM's V7_sft.model, "
                "or train one: needs: {tokenizer: STEP} with a step that uses tokenizer.train",
            )
        if params.tokenizer is not None and "tokenizer" in facts:
            raise ConfigError(
                "both a tokenizer file and an input `tokenizer` are given",
                key=f"{where}.params.tokenizer",
                hint="leave one",
            )
        if params.tokenizer is not None and not params.tokenizer.exists():
            raise ConfigError(f"the tokenizer {params.tokenizer} does not exist", key=f"{where}.params.tokenizer")

    def facts(self, params: Params, runtime: Runtime, facts: Mapping[str, Facts]) -> Facts:
        passed = {k: v for k, v in facts["raw"].items() if k == "lines_by_type"}
        if params.tokenizer is None:
            return passed | {k: v for k, v in facts["tokenizer"].items() if k == "vocab_size"}
        from evo_core.data.tokenizers import load_tokenizer

        return passed | {"vocab_size": load_tokenizer(params.tokenizer).vocab_size}

    def run(self, ctx: StepContext[Params, Runtime]) -> dict[str, Any]:
        tokenizer = ctx.params.tokenizer or ctx.inputs["tokenizer"].path / TOKENIZER
        tokenizer_digest = keep_tokenizer(tokenizer, ctx.folder)
        files = [file for file in read_listing(ctx.inputs["raw"]) if file.size]
        objects = {file.path: self._object_id(ctx.params, file, tokenizer_digest) for file in files}
        missing = {
            objects[file.path]: file for file in files if not (ctx.store.object(objects[file.path]) / DONE).exists()
        }
        reused = len(set(objects.values())) - len(missing)
        ctx.say(f"{len(missing)} of {len(files)} files to tokenize, {reused} found in the store")
        _tokenize_all(ctx, missing, tokenizer)
        index = [
            {**_as_row(file), "object": objects[file.path], **_counts(ctx.store, objects[file.path])} for file in files
        ]
        write_json(ctx.folder / INDEX, index)
        return {
            "files": len(files),
            "files_tokenized": len(missing),
            "documents": sum(row["documents"] for row in index),
            "tokens": sum(row["tokens"] for row in index),
            "skipped_records": sum(row["skipped"] for row in index),
        }

    def _object_id(self, params: Params, file: RawFile, tokenizer: str) -> str:
        settings = params.model_dump(mode="json", exclude={"tokenizer"})
        return combine(
            [
                ("file", file.digest),
                ("suffix", "".join(Path(file.path).suffixes[-2:])),
                ("tokenizer", tokenizer),
                ("kind", f"{self.name} {self.version}"),
                *((name, repr(value)) for name, value in settings.items()),
            ]
        )


def _as_row(file: RawFile) -> dict[str, Any]:
    return {"path": file.path, "uri": file.uri, "digest": file.digest, "bytes": file.size}


def _counts(store: Store, object_id: str) -> dict[str, Any]:
    return read_json(store.object(object_id) / DONE) or {}


def _tokenize_all(ctx: StepContext[Params, Runtime], missing: Mapping[str, RawFile], tokenizer: Path) -> None:
    """Tokenize the missing files, the largest first, on all cores; each object is there once it is whole."""
    from evo_core.data.tokenize import TokenizeSpec

    if not missing:
        return
    specs: dict[str, TokenizeSpec] = {}
    for object_id, file in sorted(missing.items(), key=lambda item: -item[1].size):
        _verify(file)
        folder = ctx.store.object(object_id)
        folder.mkdir(parents=True, exist_ok=True)
        specs[object_id] = TokenizeSpec(
            input=Path(file.uri),
            output=folder / TOKENS,
            tokenizer=tokenizer,
            mode=ctx.params.mode,
            text_keys=tuple(ctx.params.text_keys),
            bos=ctx.params.bos,
            eos=ctx.params.eos,
            on_error=ctx.params.on_error,
        )
    total, done, tokens = sum(file.size for file in missing.values()), 0, 0
    workers = min(ctx.runtime.workers or os.cpu_count() or 1, len(specs))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_die_with_parent)
    try:
        pending: dict[Future[TokenizeResult], str] = {pool.submit(_run, s): o for o, s in specs.items()}
        while pending:
            finished, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            if ctx.stop.is_set():
                raise Stopped(f"{len(pending)} files are left to tokenize")
            for future in finished:
                object_id = pending.pop(future)
                result = future.result()
                counts = {"documents": result.documents, "tokens": result.tokens, "skipped": result.skipped}
                create_json(ctx.store.object(object_id) / DONE, counts)
                done, tokens = done + missing[object_id].size, tokens + result.tokens
                ctx.on_progress({"done": done, "total": total, "unit": "bytes", "tokens": tokens})
    finally:
        for process in list((pool._processes or {}).values()) if ctx.stop.is_set() else []:
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _verify(file: RawFile) -> None:
    path = Path(file.uri)
    if not path.exists() or digest_file(path).digest != file.digest:
        raise DataError(
            "this raw file is gone or changed since it was listed",
            file=path,
            hint="run again; `settle:` of source.files leaves out files that are still being written",
        )


def _run(spec: TokenizeSpec) -> TokenizeResult:
    from evo_core.data.tokenize import tokenize_file

    return tokenize_file(spec)


def _die_with_parent() -> None:
    from evo_core.process import die_with_parent

    die_with_parent()

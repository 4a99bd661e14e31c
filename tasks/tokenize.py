"""`data.tokenize`: raw files to token files, each tokenized once in the life of the store.

The tokens of one raw file are an object of the store whose id follows from the file's content, the tokenizer and the
parameters. A run tokenizes the files whose object is not there yet; a killed run loses the files it was at, no more.
What an earlier index says of an object is not read from the object again, so that ten thousand known files cost one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from evo_core.errors import ConfigError, DataError
from tasks import kind
from tasks.kind import Facts, Input, Kind, StepContext
from tasks.launch import launcher_for
from tasks.launch.launcher import Budget, LaunchRuntime, WallTime
from tasks.launch.local import LocalLauncher, refuse_beside_slurm
from tasks.launch.pace import Pace
from tasks.params.paths import PipelinePath
from tasks.raw.listing import RawFile, read_listing
from tasks.raw.token_objects import DONE, INDEX, index_rows, object_ids, read_index
from tasks.raw.tokenize_array import on_array
from tasks.raw.tokenize_work import TokenizeWork
from tasks.store import Artifact, Store
from tasks.store.earlier import earlier, most_alike
from tasks.store.json_file import read_object, write_json
from tasks.store.objects import is_whole
from tasks.tokenizer import keep_tokenizer, tokenizer_fact, tokenizer_in

COUNTS = ("documents", "tokens", "skipped", "blank")


class Params(kind.Params):
    """What the tokens are."""

    tokenizer: PipelinePath | None = Field(
        None, description="a tokenizer file, instead of the input `tokenizer`; it enters the key by its content"
    )
    mode: Literal["text", "internevo"] = Field(
        "text", description="text: the named fields; internevo: as its tool does"
    )
    text_keys: list[str] = Field(["text"], description="fields of a JSON record that hold text")
    type_key: str | None = Field(
        None, description="field of a JSON record that names its type of text, for `route: field` of data.shard"
    )
    bos: bool = Field(True, description="begin each document with the begin-of-sequence id")
    eos: bool = Field(True, description="end each document with the end-of-sequence id")
    on_error: Literal["raise", "skip"] = Field(
        "raise", description="what to do with a broken record; skipped ones count"
    )


class Runtime(kind.Runtime):
    """On how many cores, of this machine or of others."""

    workers: int | None = Field(None, ge=1, description="processes on this machine; default one a core")
    dask: str | None = Field(
        None,
        description="a Dask scheduler that tokenizes instead (tcp://host:8786; its workers see the same folders), or "
        "`local` for a Dask cluster on this machine",
    )
    cluster: str = Field("local", description="a name in configs/clusters/, or a path to such a file")
    array: int | None = Field(None, ge=1, description="tasks of an array on a Slurm cluster; default 1")
    cpus: int | None = Field(None, ge=1, description="cores of each task of the array; default 1")
    time: WallTime | None = Field(None, description="wall time of each task of the array: 4h, 30m")
    max_restarts: Budget = Field(3, description="restarts of a task for each cause of failure, as of a training step")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        """Settings of this machine, of Dask and of Slurm exclude each other: none may be read and ignored.

        Raises:
            ValueError: which of them do not go together.
        """
        given = self.model_fields_set
        if self.dask is not None and self.cluster != "local":
            raise ValueError("dask and cluster are two ways to spread the files; leave one")
        if self.cluster != "local" and self.workers is not None:
            raise ValueError("workers is for this machine; on a cluster write cpus, the cores of each task")
        if self.cluster == "local" and (lonely := sorted(given & {"array", "cpus", "time", "max_restarts"})):
            raise ValueError(f"{lonely[0]} is for a Slurm cluster; name one: cluster: slurm")
        return self

    @property
    def launch(self) -> LaunchRuntime | None:
        """What each task of the array asks of its cluster; None on this machine and with Dask."""
        if self.cluster == "local":
            return None
        asked = {"cluster": self.cluster, "cpus_per_rank": self.cpus or 1, "time": self.time}
        return LaunchRuntime(**asked, max_restarts=self.max_restarts)


class Tokenize(Kind[Params, Runtime]):
    """One token file for each raw file, and the index of them."""

    name = "data.tokenize"
    version = 2
    inputs = {"raw": Input("raw"), "tokenizer": Input("tokenizer", optional=True, also=("model",))}
    output = "tokens"
    params_type = Params
    runtime_type = Runtime
    introduced = {"type_key": None}

    def identity(self, params: Params, runtime: Runtime) -> dict[str, Any]:
        payload = super().identity(params, runtime)
        if params.tokenizer is not None:
            from evo_core.data.tokenize.tokenizers import load_tokenizer

            payload["tokenizer"] = load_tokenizer(params.tokenizer).digest
        return payload

    def check(self, params: Params, runtime: Runtime, facts: Mapping[str, Facts], where: str) -> None:
        """Refuse a step without one tokenizer, and settings that do not go together.

        Raises:
            ConfigError: none or two tokenizers are named, or one that the settings do not fit.
        """
        if runtime.launch is not None and isinstance(launcher_for(runtime.launch), LocalLauncher):
            hint = "name a cluster whose kind is slurm, or leave cluster out and use workers"
            raise ConfigError(f"{runtime.cluster!r} is this machine alone", key="runtime.cluster", hint=hint)
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
        if params.type_key is not None and params.mode == "internevo":
            raise ConfigError("a type_key has no effect in mode internevo", key=f"{where}.params.type_key")
        if params.tokenizer is not None and not params.tokenizer.exists():
            raise ConfigError(f"the tokenizer {params.tokenizer} does not exist", key=f"{where}.params.tokenizer")
        tokenizer = params.tokenizer or _of_input(facts, where)
        if tokenizer is None:
            return
        from evo_core.data.tokenize.tokenizers import load_tokenizer

        try:
            load_tokenizer(tokenizer).encode("", bos=params.bos, eos=params.eos)
        except DataError as error:
            if error.key not in ("bos", "eos"):
                raise  # of the tokenizer's own files
            key = f"{where}.params.{error.key}"
            raise ConfigError(error.message, file=error.file, key=key, hint=error.hint) from None

    def facts(self, params: Params, runtime: Runtime, facts: Mapping[str, Facts]) -> Facts:
        passed = {k: v for k, v in facts["raw"].items() if k == "lines_by_type"} | {"type_key": params.type_key}
        return passed | tokenizer_facts(params.tokenizer, facts)

    def run(self, ctx: StepContext[Params, Runtime]) -> dict[str, Any]:
        tokenizer = ctx.params.tokenizer or tokenizer_in(ctx.inputs["tokenizer"].path)
        tokenizer_digest = keep_tokenizer(tokenizer, ctx.folder)
        files = [file for file in read_listing(ctx.inputs["raw"]) if file.size]
        ids = self._object_ids(ctx.params, files, tokenizer_digest)
        ctx.objects.update(ids)
        counts = _known_counts(ctx, self, set(ids))
        missing = {object_id: file for object_id, file in zip(ids, files, strict=True) if object_id not in counts}
        reused = len(set(ids)) - len(missing)
        ctx.say(f"{len(missing)} of {len(files)} files to tokenize, {reused} found in the store")
        counts |= _tokenize(ctx, missing, tokenizer)
        index = index_rows(files, ids, counts)
        write_json(ctx.folder / INDEX, index, indent=None)
        return {
            "files": len(files),
            "files_tokenized": len(missing),
            "documents": sum(row["documents"] for row in index),
            "tokens": sum(row["tokens"] for row in index),
            "skipped_records": sum(row["skipped"] for row in index),
            "blank_texts": sum(row["blank"] for row in index),
        }

    def _object_ids(self, params: Params, files: list[RawFile], tokenizer: str) -> list[str]:
        """For each file, what its tokens depend on: `object_ids` of the tokenizer and the parameters."""
        settings = params.model_dump(mode="json", exclude={"tokenizer"})
        settings = {k: v for k, v in settings.items() if not (k in self.introduced and v == self.introduced[k])}
        same = [
            ("tokenizer", tokenizer),
            ("kind", f"{self.name} {self.version}"),
            *((name, repr(value)) for name, value in settings.items()),
        ]
        return object_ids(files, same)


def _known_counts(ctx: StepContext[Params, Runtime], kind_: Tokenize, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Counts of those objects that are there, from an earlier index where it names them, else from the objects."""

    def read(artifact: Artifact) -> tuple[dict[str, dict[str, Any]], float]:
        rows = {row["object"]: {name: row[name] for name in COUNTS} for row in read_index(artifact)}
        return rows, len(rows.keys() & ids) / max(len(ids), 1)

    indexed = most_alike(earlier(ctx.store, kind_.name, kind_.version), read) or {}
    folders = _object_folders(ctx.store, ids)
    if ctx.anew:
        folders = {object_id for object_id in folders if is_whole(ctx.store.object(object_id), DONE)}
    counts = {object_id: indexed[object_id] for object_id in folders & indexed.keys()}
    for object_id in folders - indexed.keys():
        done = read_object(ctx.store.object(object_id) / DONE)
        if done is not None:
            counts[object_id] = done
    return counts


def _object_folders(store: Store, ids: set[str]) -> set[str]:
    """Which of the objects have a folder: a listing of at most 256 folders, however many objects there are."""
    found: set[str] = set()
    for object_id in {object_id[:2]: object_id for object_id in ids}.values():
        try:
            with os.scandir(store.object(object_id).parent) as entries:
                found.update(entry.name for entry in entries)
        except FileNotFoundError:
            continue
    return found & ids


def tokenizer_facts(given: Path | None, facts: Mapping[str, Facts]) -> Facts:
    """What is known of the tokenizer that a step uses: the one it is given, else that of its input."""
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    tokenizer = given or tokenizer_fact(facts["tokenizer"])
    if tokenizer is None:
        return {k: v for k, v in facts["tokenizer"].items() if k == "vocab_size"}
    return {"vocab_size": load_tokenizer(tokenizer).vocab_size, "tokenizer": str(tokenizer)}


def _of_input(facts: Mapping[str, Facts], where: str) -> Path | None:
    """The tokenizer of the input, if it is there already.

    Raises:
        ConfigError: the input is a model that has none.
    """
    known = facts["tokenizer"]
    if "tokenizer" in known and known["tokenizer"] is None:
        hint = "name one: `tokenizer:` of the model.import step, or of this step instead of the input"
        raise ConfigError("there is no tokenizer with this model", key=f"{where}.needs.tokenizer", hint=hint)
    return tokenizer_fact(known)


def _tokenize(
    ctx: StepContext[Params, Runtime], missing: Mapping[str, RawFile], tokenizer: Path
) -> dict[str, dict[str, Any]]:
    """Tokenize the missing files where the runtime says; gives the counts of their objects."""
    if not missing:
        return {}
    settings = ctx.params.model_dump(mode="json", exclude={"tokenizer"})
    work = TokenizeWork(ctx.store, missing, tokenizer, settings)
    if ctx.anew:
        work.forget()  # what is missing then may be there and damaged
    if ctx.runtime.launch is not None:
        return on_array(ctx, work, ctx.runtime.launch, ctx.runtime.array or 1)
    refuse_beside_slurm(ctx.state)
    pace = Pace()

    def on_progress(done: int, total: int, tokens: int) -> None:
        ctx.on_progress({"unit": "bytes", **pace.report(done, total, tokens)})

    with _executor(ctx.runtime) as executor:
        return work.carry_out(workers=ctx.runtime.workers, executor=executor, on_progress=on_progress, stop=ctx.stop)


@contextmanager
def _executor(runtime: Runtime) -> Iterator[Executor | None]:
    """What tokenizes in place of a pool of processes."""
    if runtime.dask is None:
        yield None
        return
    from evo_core.data.tokenize.fan_out import dask_executor

    with dask_executor(runtime.dask) as executor:
        yield executor

"""`data.shard`: token files to a dataset, one folder of shards a type of text, with a held-out part.

A new version of a dataset starts from the newest earlier one that was made with the same parameters: shards in which
nothing changed are hard-linked, the rest is written anew (see `evo_core.data.dataset.shard_plan`). So which documents
lie in which shard depends on history; which documents a dataset has, and in what order, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from evo_core.errors import ConfigError, DataError
from evo_core.storage.files import link_tree
from tasks import kind
from tasks.kind import Facts, Input, Kind, StepContext
from tasks.launch.launcher import Stopped
from tasks.launch.pace import Pace
from tasks.raw.token_objects import TOKENS, read_index
from tasks.store import Artifact
from tasks.store.earlier import earlier, most_alike
from tasks.tokenizer import TOKENIZER

if TYPE_CHECKING:
    from evo_core.data.dataset.build import PreviousVersion, ShardSource


class Near(kind.Params):
    """What counts as a near duplicate."""

    threshold: float = Field(0.8, gt=0, le=1, description="least share of shingles in common (Jaccard index)")
    permutations: int = Field(128, ge=16, description="numbers in a MinHash signature")
    shingle: int = Field(5, ge=1, description="tokens in a shingle")


class Params(kind.Params):
    """What the dataset is."""

    types: list[str] | None = Field(None, description="types of text to take; default: every one there is")
    by_path: dict[str, str] = Field(
        {}, description="pattern of raw paths to type, the first match counts; default: the first folder of the path"
    )
    valid_fraction: float = Field(0.01, ge=0, lt=1, description="share of documents held out of training")
    shard_tokens: int = Field(100_000_000, ge=1, description="size of a shard in tokens")
    seed: int = Field(0, description="decides which documents are held out")
    route: Literal["path", "field", "detect"] = Field(
        "path",
        description="path: a file's type is its folder's or by_path's; field: a document's type is in its record "
        "(type_key of data.tokenize); detect: language or code, seen from the text",
    )
    others: Literal["error", "drop"] = Field(
        "error", description="documents of a type that `types` does not name: an error, or dropped and counted"
    )
    dedup: Literal["none", "exact", "near"] = Field("none", description="which repeated documents are left out")
    near: Near = Field(default_factory=Near, description="for dedup: near")


class Runtime(kind.Runtime):
    """How many cores."""

    workers: int | None = Field(None, ge=1, description="processes that read new files; default one a core")


class Shard(Kind[Params, Runtime]):
    """Packs small files into shards and splits documents into train and valid by a stable hash of their tokens."""

    name = "data.shard"
    inputs = {"tokens": Input("tokens")}
    output = "dataset"
    params_type = Params
    runtime_type = Runtime
    introduced = {"route": "path", "others": "error", "dedup": "none"}

    def identity(self, params: Params, runtime: Runtime) -> dict[str, Any]:
        payload = super().identity(params, runtime)
        if params.dedup != "near":
            del payload["near"]
        return payload

    def check(self, params: Params, runtime: Runtime, facts: Mapping[str, Facts], where: str) -> None:
        """Refuse a routing that cannot route, and types without enough documents for two sides.

        Raises:
            ConfigError: `by_path` without `route: path`, types from records that `data.tokenize` did not take, or a
                type of which too little is there.
        """
        if params.by_path and params.route != "path":
            raise ConfigError(
                f"by_path has no effect with route: {params.route}", key=f"{where}.params.by_path", hint="leave one"
            )
        if params.route == "field" and not facts["tokens"].get("type_key"):
            raise ConfigError(
                "route: field needs the types that data.tokenize takes from the records",
                key=f"{where}.params.route",
                hint="set `type_key:` of the data.tokenize step to the record's field that names the type",
            )
        if params.route == "path":
            self._check_types_of_paths(params, facts["tokens"].get("lines_by_type"), where)

    def _check_types_of_paths(self, params: Params, lines: Mapping[str, int | None] | None, where: str) -> None:
        if lines is None or params.by_path:  # known only when the raw files were listed, by folder
            return
        for type_ in params.types or lines:
            if type_ not in lines:
                raise ConfigError(
                    f"there is no raw text of type {type_!r}",
                    key=f"{where}.params.types",
                    hint=f"types found, by the first folder: {', '.join(lines)}; `by_path` maps paths to types",
                )
            most = lines[type_]
            if params.valid_fraction > 0 and most is not None and most < 2:
                raise ConfigError(
                    f"too few documents for a split: {type_!r} has at most {most}",
                    key=f"{where}.params.valid_fraction",
                    hint="add raw text of this type, leave it out of `types`, or set valid_fraction: 0",
                )
        left_out = set(lines) - set(params.types or lines)
        if left_out and params.others == "error":
            raise ConfigError(
                f"raw text of type {', '.join(sorted(left_out))} would be left out",
                key=f"{where}.params.types",
                hint="name it in `types`, set `others: drop`, or leave its files out with `exclude:` of source.files",
            )

    def facts(self, params: Params, runtime: Runtime, facts: Mapping[str, Facts]) -> Facts:
        passed = {k: v for k, v in facts["tokens"].items() if k in ("vocab_size", "tokenizer")}
        passed |= {"types": sorted(params.types)} if params.types else {}
        most = _most_documents(params, facts["tokens"].get("lines_by_type"))
        return passed if most is None else passed | {"most_documents": most}

    def run(self, ctx: StepContext[Params, Runtime]) -> dict[str, Any]:
        from evo_core.data.dataset.build import write_shards
        from evo_core.data.dataset.dedup import NearDuplicates
        from evo_core.data.dataset.routing import TypeRouting

        params, tokens = ctx.params, ctx.inputs["tokens"]
        sources = self._sources(ctx)
        previous = self._previous(ctx, sources)
        if previous is not None:
            ctx.say(f"starts from the version in {previous.folder.parents[1].name}")
        types = None if params.types is None else frozenset(params.types)
        try:
            statistics = write_shards(
                sources,
                ctx.folder,
                valid_fraction=params.valid_fraction,
                shard_tokens=params.shard_tokens,
                seed=params.seed,
                routing=TypeRouting(params.route, tokens.path / TOKENIZER, types, params.others),
                dedup=params.dedup,
                near=NearDuplicates(**params.near.model_dump()),
                previous=previous,
                workers=ctx.runtime.workers,
                on_progress=_progress(ctx),
            )
        except DataError as error:
            if error.key in ("types", "valid_fraction"):
                error = DataError(error.message, key=f"steps.{ctx.name}.params.{error.key}", hint=error.hint)
            elif error.file and Path(error.file).is_relative_to(ctx.store.root / "objects"):
                hint = f"make the tokens anew with --force {tokens.manifest['step']}"
                error = DataError(error.message, file=error.file, line=error.line, hint=hint)
            raise error from None
        for shard in statistics["shards"]:
            ctx.digests[shard["path"]] = shard["digest"]
            ctx.digests[f"{shard['path']}.meta"] = shard["meta_digest"]
        link_tree(tokens.path / TOKENIZER, ctx.folder / TOKENIZER)
        types_ = statistics["types"].values()
        return {
            "documents": sum(of_type["documents"] for of_type in types_),
            "tokens": sum(of_type["tokens"] for of_type in types_),
            "shards": len(statistics["shards"]),
            "shards_kept": _kept(previous, statistics["shards"]),
            "types": statistics["types"],
            **({"dropped": statistics["dropped"]} if "dropped" in statistics else {}),
        }

    def _sources(self, ctx: StepContext[Params, Runtime]) -> list[ShardSource]:
        from evo_core.data.dataset.build import ShardSource
        from evo_core.data.dataset.routing import type_of_path

        sources = []
        for row in read_index(ctx.inputs["tokens"]):
            if row["documents"]:
                type_ = type_of_path(row["path"], ctx.params.by_path) if ctx.params.route == "path" else ""
                path = ctx.store.object(row["object"]) / TOKENS
                sources.append(ShardSource(type_, path, row["path"], row["object"]))
        return sources

    def _previous(self, ctx: StepContext[Params, Runtime], sources: list[ShardSource]) -> PreviousVersion | None:
        """The record of the newest dataset that was made in the same way from much of the same tokens."""
        from evo_core.data.dataset.build import PreviousVersion

        def read(artifact: Artifact) -> tuple[PreviousVersion, float] | None:
            if artifact.key == ctx.key:
                return None  # a forced rebuild is not made from what it replaces
            record = PreviousVersion.load(artifact.path)
            return None if record is None else (record, record.share(sources))

        params = self.identity(ctx.params, ctx.runtime)
        return most_alike(earlier(ctx.store, self.name, self.version, params), read)


def _most_documents(params: Params, lines: Mapping[str, int | None] | None) -> int | None:
    """A bound on the documents of the dataset, where one is known."""
    if lines is None:
        return None
    by_folder = params.route == "path" and not params.by_path
    counts = [count for type_, count in lines.items() if not by_folder or type_ in (params.types or lines)]
    return None if None in counts else sum(count or 0 for count in counts)


def _kept(previous: PreviousVersion | None, shards: list[dict[str, Any]]) -> int:
    """How many shards are those of the earlier version."""
    before = previous.shards if previous else {}
    return sum(shard["path"] in before and before[shard["path"]]["digest"] == shard["digest"] for shard in shards)


def _progress(ctx: StepContext[Params, Runtime]) -> Callable[[str, int, int], None]:
    paces: dict[str, Pace] = {}

    def on_progress(phase: str, done: int, total: int) -> None:
        if ctx.stop.is_set():
            raise Stopped("the dataset was not finished; a new run makes it from the beginning")
        pace = paces.setdefault(phase, Pace())
        unit = {"read": "bytes", "write": "tokens"}[phase]
        ctx.on_progress({"unit": unit, **pace.report(done, total, done if phase == "write" else None)})

    return on_progress

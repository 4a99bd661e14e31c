"""`data.shard`: token files to a dataset, one folder of shards a type of text, with a held-out part."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from evo_core.errors import ConfigError
from tasks import kind
from tasks.kind import Facts, Input, Kind, StepContext
from tasks.store.atomic import read_json, write_json
from tasks.store.links import link_tree
from tasks.tokenize import INDEX, TOKENS
from tasks.tokenizer import TOKENIZER

STATISTICS = "statistics.json"


class Params(kind.Params):
    """What the dataset is."""

    types: list[str] | None = Field(None, description="types of text to take; default: every one there is")
    by_path: dict[str, str] = Field(
        {}, description="pattern of raw paths to type, the first match counts; default: the first folder of the path"
    )
    valid_fraction: float = Field(0.01, ge=0, lt=1, description="share of documents held out of training")
    shard_tokens: int = Field(100_000_000, ge=1, description="size of a shard in tokens")
    seed: int = Field(0, description="decides which documents are held out")


class Shard(Kind[Params, kind.Runtime]):
    """Packs small files into shards and splits documents into train and valid by a stable hash of their tokens."""

    name = "data.shard"
    inputs = {"tokens": Input("tokens")}
    output = "dataset"
    params_type = Params

    def check(self, params: Params, runtime: kind.Runtime, facts: Mapping[str, Facts], where: str) -> None:
        lines = facts["tokens"].get("lines_by_type")
        if lines is None or params.by_path:  # known only when the raw files were listed, by folder
            return
        for type_ in params.types or lines:
            if type_ not in lines:
                raise ConfigError(
                    f"there is no raw text of type {type_!r}",
                    key=f"{where}.params.types",
                    hint=f"types found, by the first folder: {', '.join(lines)}; `by_path` maps paths to types",
                )
            if params.valid_fraction > 0 and lines[type_] < 2:
                raise ConfigError(
                    f"too few documents for a split: {type_!r} has at most {lines[type_]}",
                    key=f"{where}.params.valid_fraction",
                    hint="add raw text of this type, leave it out of `types`, or set valid_fraction: 0",
                )
        left_out = set(lines) - set(params.types or lines)
        if left_out:
            raise ConfigError(
                f"raw text of type {', '.join(sorted(left_out))} would be left out",
                key=f"{where}.params.types",
                hint="name it in `types`, or leave its files out with `exclude:` of source.files",
            )

    def facts(self, params: Params, runtime: kind.Runtime, facts: Mapping[str, Facts]) -> Facts:
        passed = {k: v for k, v in facts["tokens"].items() if k == "vocab_size"}
        return passed | ({"types": sorted(params.types)} if params.types else {})

    def run(self, ctx: StepContext[Params, kind.Runtime]) -> dict[str, Any]:
        from evo_core.data.shard import ShardSource, write_shards

        tokens, sources = ctx.inputs["tokens"], []
        for row in read_json(tokens.path / INDEX) or []:
            if row["documents"] == 0:
                continue
            type_ = self._type(ctx.params, row["path"])
            if ctx.params.types is not None and type_ not in ctx.params.types:
                raise ConfigError(
                    f"{row['path']} is of type {type_!r}, which `types` does not name",
                    key=f"steps.{ctx.name}.params.types",
                    hint="name the type, or map the path to one with `by_path`",
                )
            sources.append(ShardSource(type_, ctx.store.object(row["object"]) / TOKENS, row["path"]))
        statistics = write_shards(
            sources,
            ctx.folder,
            valid_fraction=ctx.params.valid_fraction,
            shard_tokens=ctx.params.shard_tokens,
            seed=ctx.params.seed,
        )
        write_json(ctx.folder / STATISTICS, statistics)
        link_tree(tokens.path / TOKENIZER, ctx.folder / TOKENIZER)
        types = statistics["types"].values()
        return {
            "documents": sum(of_type["documents"] for of_type in types),
            "tokens": sum(of_type["tokens"] for of_type in types),
            "shards": len(statistics["shards"]),
            "types": statistics["types"],
        }

    @staticmethod
    def _type(params: Params, path: str) -> str:
        for pattern, type_ in params.by_path.items():
            if fnmatch.fnmatch(path, pattern):
                return type_
        return path.partition("/")[0]

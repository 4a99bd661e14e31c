"""`model.import` and `model.export`: weights of other systems into a pipeline, and a model out of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from evo_core.errors import ConfigError, DataError
from evo_core.storage.files import file_exists, file_info, link_or_copy, list_files
from evo_core.storage.location import is_remote
from tasks import kind
from tasks.imported import Imported, know
from tasks.kind import Facts, Input, Kind, Source, StepContext
from tasks.launch.launcher import LaunchRuntime
from tasks.launch.step import launch
from tasks.params.paths import PipelineLocation, PipelinePath
from tasks.raw.listing import object_digest
from tasks.store.digests import DigestMemory, combine
from tasks.train import MODEL

HF = "hf"
"""Folder in an exported artifact that Hugging Face's transformers reads."""

_ABOVE = "tokenizer.model"

Dtype = Literal["bfloat16", "float16", "float32", "float64"]


class ImportParams(kind.Params):
    """What is imported."""

    source: PipelineLocation = Field(
        description="a Hugging Face, Meta or InternEvo folder with weights, on this machine or s3://bucket/prefix"
    )
    tokenizer: PipelinePath | None = Field(None, description="a tokenizer, in place of the one beside the weights")
    config: PipelinePath | None = Field(
        None, description="a configuration with the `model` block, for an InternEvo folder without model_config.pt"
    )
    model_type: str | None = Field(None, description="family to read it as; default: the nearest")
    dtype: Dtype | None = Field(None, description="type of the weights; default: as they are")


class ImportModel(Source[ImportParams, LaunchRuntime]):
    """Weights of another system as a model that steps can finetune, evaluate and generate with."""

    name = "model.import"
    version = 2
    output = "model"
    params_type = ImportParams
    runtime_type = LaunchRuntime

    def digest(self, params: ImportParams, remember: Path) -> tuple[str, Facts]:
        """sha256 over name and content of every file that is read, and over what is made of them.

        The content of a file in a store is told by its ETag, with its size.

        Raises:
            ConfigError: the folder, or a file that is named, is not there or empty; or no model can be made of it.
        """
        digest = _digest(params, remember)
        source = Imported(params.source, params.tokenizer, params.config, params.model_type, params.dtype)
        return digest, know(source, digest, remember)

    def run(self, ctx: StepContext[ImportParams, LaunchRuntime]) -> dict[str, Any]:
        """Convert the folder to a checkpoint of ours.

        Raises:
            ConfigError: its files are no longer those that the key was made of.
        """
        params = ctx.params
        found = _digest(params, ctx.store.inventory)
        if ctx.source_digest is not None and found != ctx.source_digest:
            message = "the weights changed while the run was starting"
            raise ConfigError(message, file=params.source, hint="run again when they are complete")
        _convert(ctx, params.source, ctx.folder / MODEL, "evo", params, "tokenizer", "config", "model_type", "dtype")
        link_or_copy(ctx.folder / MODEL / "config.yaml", ctx.folder / "config.yaml")
        return _size(ctx.folder / MODEL)


class ExportParams(kind.Params):
    """What the Hugging Face folder is."""

    dtype: Dtype | None = Field(None, description="type of the weights; default: as they are")
    max_shard: str = Field("10GB", description="largest file")
    rotary_type: Literal["origin", "dynamic"] | None = Field(
        None, description="whether it stretches its rotary base for long texts; default: as the model does"
    )
    architecture: str | None = Field(None, description="class; default: that of the model type")


class ExportModel(Kind[ExportParams, LaunchRuntime]):
    """A model as a Hugging Face folder."""

    name = "model.export"
    version = 2
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input("model")}
    output = "hf_model"
    params_type = ExportParams
    runtime_type = LaunchRuntime

    def facts(self, params: ExportParams, runtime: LaunchRuntime, facts: Mapping[str, Facts]) -> Facts:
        return {"vocab_size": facts["model"].get("vocab_size")}

    def run(self, ctx: StepContext[ExportParams, LaunchRuntime]) -> dict[str, Any]:
        source = ctx.inputs["model"].path / MODEL
        _convert(ctx, source, ctx.folder / HF, "hf", ctx.params, "dtype", "max_shard", "rotary_type", "architecture")
        return _size(ctx.folder / HF)


def _digest(params: ImportParams, remember: Path) -> str:
    memory = DigestMemory(remember)
    parts = list(_in_store(params.source) if is_remote(params.source) else _on_disk(Path(params.source), memory))
    names = {name for name, _ in parts}
    if "params.json" in names and not {"tokenizer.json", _ABOVE} & names:  # Meta's: one for all its models lies above
        parts += _above(params.source, memory)
    if not parts:
        raise ConfigError(f"there are no weights in {params.source}", key="source", hint="name the folder itself")
    for name in ("tokenizer", "config"):
        given: Path | None = getattr(params, name)
        if given is None:
            continue
        files = [path for path in (given.iterdir() if given.is_dir() else [given]) if path.is_file()]
        if not files:
            raise ConfigError(f"there is no {given}", key=name)
        parts += [(f"{name}:{path.name}", memory.of(path).digest) for path in files]
    memory.save()
    parts += [(name, value) for name in ("model_type", "dtype") if (value := getattr(params, name)) is not None]
    return combine(parts)


def _above(source: str, memory: DigestMemory) -> Iterator[tuple[str, str]]:
    """The same of the tokenizer beside the folder, if there is one."""
    location = f"{source.rpartition('/')[0]}/{_ABOVE}"
    if not file_exists(location):
        return
    if is_remote(location):
        file = file_info(location)
        yield f"../{_ABOVE}", object_digest(file.tag, file.size)
    else:
        yield f"../{_ABOVE}", memory.of(Path(location)).digest


def _on_disk(source: Path, memory: DigestMemory) -> Iterator[tuple[str, str]]:
    """(name, digest) of every file of a folder."""
    if not source.is_dir():
        hint = "download the model and name its folder" if not source.exists() else "name its folder"
        raise ConfigError(f"there is no folder {source}", key="source", hint=hint)
    for path in source.iterdir():
        if path.is_file() and not path.name.startswith("."):
            yield path.name, memory.of(path).digest


def _in_store(source: str) -> Iterator[tuple[str, str]]:
    """The same of a folder in a store."""
    try:
        listed = list_files(source, lambda *what: None, depth=1)
    except DataError as error:
        raise ConfigError(f"{source}: {error.message}", key="source", hint=error.hint) from None
    for file in listed:
        if "/" not in file.path:
            yield file.path, object_digest(file.tag, file.size)


def _convert(ctx: StepContext[Any, Any], source: Path | str, target: Path, to: str, params: Any, *options: str) -> None:
    """Run the command with those of the parameters that are given."""
    args = [str(source), str(target), "--to", to]
    for name in options:
        if (value := getattr(params, name)) is not None:
            args += [f"--{name.replace('_', '-')}", str(value)]
    launch(ctx, "evo_core.convert", *args)


def _size(folder: Path) -> dict[str, Any]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}

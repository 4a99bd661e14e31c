"""A pipeline file: what a user writes, read and checked as a whole before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evo_core.config.resolve import Document, read_document
from evo_core.config.suggest import suggest
from evo_core.errors import ConfigError
from tasks import registry
from tasks.kind import Kind

NAME = re.compile(r"^[a-z][a-z0-9_-]*$")


class CachePolicy(BaseModel):
    """When an artifact may be used again."""

    model_config = ConfigDict(extra="forbid")

    on_code_change: Literal["warn", "rebuild", "error"] = Field(
        "warn", description="what to do when the code that made an artifact has changed since"
    )


class StepFile(BaseModel):
    """One entry under `steps:`."""

    model_config = ConfigDict(extra="forbid")

    uses: str = Field(description="the step's kind, or the import path of one: package.module:Class")
    needs: dict[str, str] = Field({}, description="input name to step name, or to a ref: ref:corpus@latest")
    params: dict[str, Any] = Field({}, description="what the artifact is")
    runtime: dict[str, Any] = Field({}, description="where and how it is made")
    cache: CachePolicy = CachePolicy()


class PipelineFile(BaseModel):
    """A file in configs/pipelines/."""

    model_config = ConfigDict(extra="forbid")

    pipeline: str = Field(description="its name")
    vars: dict[str, Any] = Field({}, description="values that ${vars.NAME} refers to")
    steps: dict[str, StepFile] = Field(min_length=1)
    publish: dict[str, str] = Field({}, description="ref name to the step whose artifact it shall name")


@dataclass(frozen=True)
class Step:
    """One checked step."""

    name: str
    kind: Kind[Any, Any]
    params: Any
    runtime: Any
    needs: Mapping[str, str]
    cache: CachePolicy


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline; `steps` in an order in which every step follows what it needs."""

    name: str
    document: Document
    steps: tuple[Step, ...]
    publish: Mapping[str, str]
    overrides: tuple[str, ...] = field(default=())

    @property
    def file(self) -> Path:
        """The file it was read from."""
        return self.document.file

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)

    def error(self, message: str, key: str, hint: str | None = None) -> ConfigError:
        """An error that names this file, the key and its line."""
        return _error(self.document, message, key, hint)


def load_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline file, lay `KEY=VALUE` overrides over it, and check everything a file alone can get wrong.

    Raises:
        ConfigError: unknown step, kind or key, a cycle, an input of the wrong type, a value out of range. It names
            the file, the key and its line.
    """
    document = read_document(path, overrides)
    try:
        spec = PipelineFile.model_validate(document.values())
    except ValidationError as error:
        raise explain(error, PipelineFile, document) from error
    for name in spec.steps:
        if not NAME.match(name):
            raise _error(
                document, f"{name!r} is no step name", f"steps.{name}", "use a-z, 0-9, - and _, a letter first"
            )
    steps = {name: _check_step(document, name, step) for name, step in spec.steps.items()}
    order = _order(document, steps)
    _check_inputs(document, steps)
    for ref, step in spec.publish.items():
        if step not in steps:
            raise _error(document, f"there is no step {step!r}{suggest(step, steps)}", f"publish.{ref}")
    return Pipeline(spec.pipeline, document, tuple(steps[n] for n in order), spec.publish, tuple(overrides))


def explain(error: ValidationError, model: type[BaseModel], document: Document, where: str = "") -> ConfigError:
    """A pydantic error as ours: the dotted key, its line, and the nearest known key for an unknown one."""
    first = error.errors()[0]
    key = ".".join([where] * bool(where) + [str(part) for part in first["loc"]])
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        known = _fields(model, first["loc"][:-1])
        return _error(document, f"unknown key {name!r}{suggest(name, known)}", key, f"known keys: {', '.join(known)}")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    given = "" if first["type"] == "missing" else f" (got {first['input']!r})"
    return _error(document, first["msg"][0].lower() + first["msg"][1:] + given, key)


def _check_step(document: Document, name: str, step: StepFile) -> Step:
    where = f"steps.{name}"
    try:
        kind = registry.kind(step.uses, document.file.parent)
    except ConfigError as error:
        raise _error(document, error.message, f"{where}.uses", error.hint) from error
    params = _validate(document, kind.params_type, step.params, f"{where}.params")
    runtime = _validate(document, kind.runtime_type, step.runtime, f"{where}.runtime")
    return Step(name, kind, params, runtime, step.needs, step.cache)


def _validate(document: Document, model: type[BaseModel], raw: Mapping[str, Any], where: str) -> BaseModel:
    try:
        return model.model_validate(raw, context={"folder": document.file.parent, "where": where})
    except ValidationError as error:
        raise explain(error, model, document, where) from error


def _order(document: Document, steps: Mapping[str, Step]) -> list[str]:
    for step in steps.values():
        for name, need in step.needs.items():
            if not need.startswith("ref:") and need not in steps:
                where = f"steps.{step.name}.needs.{name}"
                raise _error(document, f"there is no step {need!r}{suggest(need, steps)}", where)
    graph = {s.name: [n for n in s.needs.values() if n in steps] for s in steps.values()}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = error.args[1]
        raise _error(
            document, f"the steps wait for each other in a circle: {' -> '.join(circle)}", f"steps.{circle[0]}.needs"
        ) from error


def _check_inputs(document: Document, steps: Mapping[str, Step]) -> None:
    for step in steps.values():
        where = f"steps.{step.name}.needs"
        for name, need in step.needs.items():
            wanted = step.kind.inputs.get(name)
            if wanted is None:
                known = step.kind.inputs
                hint = f"{step.kind.name} takes {', '.join(known)}" if known else f"{step.kind.name} takes no input"
                raise _error(document, f"unknown input {name!r}{suggest(name, known)}", f"{where}.{name}", hint)
            if need in steps and steps[need].kind.output != wanted.type:
                made = steps[need].kind.output
                raise _error(
                    document,
                    f"{step.kind.name} takes a {wanted.type} here, but {need!r} makes a {made}",
                    f"{where}.{name}",
                )
        for name, wanted in step.kind.inputs.items():
            if not wanted.optional and name not in step.needs:
                fits = [s.name for s in steps.values() if s.kind.output == wanted.type]
                hint = f"write {name}: {fits[0]}" if fits else f"a step that makes a {wanted.type}, or a ref"
                raise _error(document, f"the input {name!r} ({wanted.type}) is missing", where, hint)


def _fields(model: Any, location: tuple[int | str, ...]) -> list[str]:
    """Known keys at a place inside a model, as far as the place is made of models."""
    for part in location:
        known = getattr(model, "model_fields", {}).get(part)
        if known is None:
            break
        for candidate in (known.annotation, *getattr(known.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return list(getattr(model, "model_fields", {}))


def _error(document: Document, message: str, key: str, hint: str | None = None) -> ConfigError:
    file, line = document.place(key)
    return ConfigError(message, file=file, line=line, key=key, hint=hint)

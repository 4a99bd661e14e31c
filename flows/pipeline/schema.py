"""A pipeline file: what a user writes, read and checked as a whole before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from evo_core.config.addresses import shown_override
from evo_core.config.resolve import Document, Resolved
from evo_core.config.secrets import Secrets
from evo_core.config.suggest import suggest
from evo_core.config.types import describe
from evo_core.errors import ConfigError
from flows.notify.settings import Notify
from flows.pipeline import foreach
from flows.pipeline.overrides import read_steps
from tasks import registry
from tasks.kind import Kind
from tasks.params.names import composed, name_problem, variable_problem, word_problem

Name = Annotated[str, AfterValidator(composed)]


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
    needs: dict[str, Name] = Field({}, description="input name to step name, or to a ref: ref:corpus@latest")
    params: dict[str, Any] = Field({}, description="what the artifact is")
    runtime: dict[str, Any] = Field({}, description="where and how it is made")
    cache: CachePolicy = CachePolicy()
    foreach: None = Field(None, description="a step for each value of these variables; gone once it is carried out")


class PipelineFile(BaseModel):
    """A file in configs/pipelines/."""

    model_config = ConfigDict(extra="forbid")

    pipeline: Name = Field(description="its name")
    vars: dict[str, Any] = Field({}, description="values that ${vars.NAME} refers to")
    steps: dict[str, StepFile] = Field(min_length=1)
    publish: dict[str, Name] = Field({}, description="ref name to the step whose artifact it shall name")
    notify: Notify | None = Field(None, description="whom to tell how a run has ended")


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
    """A checked pipeline.

    Attributes:
        steps: in an order in which every step follows what it needs.
        sweeps: the name of a step that was written with a foreach, or follows one, to the names of its steps.
        secrets: what came from the environment: shown and stored as the references it was written as.
    """

    name: str
    document: Document
    steps: tuple[Step, ...]
    publish: Mapping[str, str]
    overrides: tuple[str, ...] = field(default=())
    sweeps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    secrets: Secrets = field(default_factory=Secrets)
    notify: Notify | None = None

    @property
    def file(self) -> Path:
        """The file it was read from."""
        return self.document.file

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)

    def named(self, name: str) -> tuple[str, ...]:
        """The steps that a name means: all of a sweep, else the one of that name; none where there is none."""
        return self.sweeps.get(name) or tuple(step.name for step in self.steps if step.name == name)

    @property
    def names(self) -> list[str]:
        """All that `named` knows: the steps, and the sweeps."""
        return [*(step.name for step in self.steps), *self.sweeps]

    def error(self, message: str, key: str, hint: str | None = None) -> ConfigError:
        """An error that names this file, the key and its line."""
        return self.document.error(message, key, hint)


def load_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline file, lay `KEY=VALUE` overrides over it, and check everything a file alone can get wrong.

    Raises:
        ConfigError: unknown step, kind or key, a cycle, an input of the wrong type, a value out of range. It names
            the file, the key and its line.
    """
    document, overrides, sweeps = read_steps(path, overrides)
    resolved = document.resolved()
    foreach.forget_rows(resolved.values)
    with resolved.secrets.kept():
        try:
            spec = PipelineFile.model_validate(resolved.values)
        except ValidationError as error:
            raise explain(error, PipelineFile, document, resolved.secrets) from None
        _check_names(document, spec)
        _refuse_secrets_in_names(document, resolved.secrets)
        steps = {name: _check_step(document, resolved, name, step) for name, step in spec.steps.items()}
        order = _order(document, steps)
        _check_inputs(document, steps)
        for ref, step in spec.publish.items():
            if step not in steps:
                raise document.error(f"there is no step {step!r}{suggest(step, steps)}", f"publish.{ref}")
    in_order = tuple(steps[name] for name in order)
    shown = tuple(map(shown_override, overrides))
    return Pipeline(spec.pipeline, document, in_order, spec.publish, shown, sweeps, resolved.secrets, spec.notify)


def _check_names(document: Document, spec: PipelineFile) -> None:
    named = [("pipeline", spec.pipeline, "pipeline name", name_problem)]
    named += [(f"vars.{name}", name, "var name", variable_problem) for name in spec.vars]
    named += [(f"steps.{name}", name, "step name", word_problem) for name in spec.steps]
    named += [(f"publish.{name}", name, "ref name", name_problem) for name in spec.publish]
    for key, name, what, problem_of in named:
        if problem := problem_of(name):
            shown = key if name.isprintable() else key.partition(".")[0]
            raise document.error(f"{name!r} is no {what}", shown, problem)


def _refuse_secrets_in_names(document: Document, secrets: Secrets) -> None:
    """All but `vars`, `params`, `runtime` and `notify` are names, which are file names too and stand on every page."""
    for key, reference in secrets.references.items():
        first, _, rest = key.partition(".")
        if first in ("vars", "notify") or (first == "steps" and rest.split(".")[1:2] in (["params"], ["runtime"])):
            continue
        hint = "write it in the file, or give it by --set"
        raise document.error(f"{reference} may be a secret, and this is stored and shown", key, hint)


def explain(
    error: ValidationError, model: type[BaseModel], document: Document, secrets: Secrets, where: str = ""
) -> ConfigError:
    """A pydantic error as ours: the dotted key, its line, and the nearest known key for an unknown one."""
    first = error.errors()[0]
    key = ".".join([where] * bool(where) + [str(part) for part in first["loc"]])
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        known = _fields(model, first["loc"][:-1])
        return document.error(f"unknown key {name!r}{suggest(name, known)}", key, f"known keys: {', '.join(known)}")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    given = "" if first["type"] == "missing" else f" (got {_given(first['input'], key, secrets)})"
    return document.error(first["msg"][0].lower() + first["msg"][1:] + given, key)


def _given(value: Any, key: str, secrets: Secrets) -> str:
    return secrets.references.get(key) or describe(value if not secrets.hold(key) else {})


def _check_step(document: Document, resolved: Resolved, name: str, step: StepFile) -> Step:
    where = f"steps.{name}"
    try:
        kind = registry.kind(step.uses, document.file.parent)
    except ConfigError as error:
        raise document.error(error.message, f"{where}.uses", error.hint) from None
    written = resolved.written["steps"].get(name, {}).get("params") or {}
    params = _validate(
        document, kind.params_type, step.params, f"{where}.params", resolved.secrets, written, frozenset(step.needs)
    )
    runtime = _validate(document, kind.runtime_type, step.runtime, f"{where}.runtime", resolved.secrets)
    return Step(name, kind, params, runtime, step.needs, step.cache)


def _validate(
    document: Document,
    model: type[BaseModel],
    raw: Mapping[str, Any],
    where: str,
    secrets: Secrets,
    written: Mapping[str, Any] | None = None,
    needs: frozenset[str] = frozenset(),
) -> BaseModel:
    """Params or runtime as their kind declares them.

    Args:
        written: the same data with references where the environment's values are, for a kind that writes files.
        needs: the names of the step's inputs.
    """
    context = {"folder": document.file.parent, "where": where, "written": raw if written is None else written}
    context["needs"] = needs
    try:
        return model.model_validate(raw, context=context)
    except ValidationError as error:
        raise explain(error, model, document, secrets, where) from None


def _order(document: Document, steps: Mapping[str, Step]) -> list[str]:
    for step in steps.values():
        for name, need in step.needs.items():
            if not need.startswith("ref:") and need not in steps:
                where = f"steps.{step.name}.needs.{name}"
                raise document.error(f"there is no step {need!r}{suggest(need, steps)}", where)
    graph = {s.name: [n for n in s.needs.values() if n in steps] for s in steps.values()}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = error.args[1]
        raise document.error(
            f"the steps wait for each other in a circle: {' -> '.join(circle)}", f"steps.{circle[0]}.needs"
        ) from error


def _check_inputs(document: Document, steps: Mapping[str, Step]) -> None:
    for step in steps.values():
        where = f"steps.{step.name}.needs"
        for name, need in step.needs.items():
            wanted = step.kind.inputs.get(name)
            if wanted is None:
                known = step.kind.inputs
                hint = f"{step.kind.name} takes {', '.join(known)}" if known else f"{step.kind.name} takes no input"
                raise document.error(f"unknown input {name!r}{suggest(name, known)}", f"{where}.{name}", hint)
            if need in steps and not wanted.takes(steps[need].kind.output):
                made = steps[need].kind.output
                raise document.error(
                    f"{step.kind.name} takes a {wanted.type} here, but {need!r} makes a {made}",
                    f"{where}.{name}",
                )
        for name, wanted in step.kind.inputs.items():
            if not wanted.optional and name not in step.needs:
                fits = [s.name for s in steps.values() if wanted.takes(s.kind.output)]
                hint = f"write {name}: {fits[0]}" if fits else f"a step that makes a {wanted.type}, or a ref"
                raise document.error(f"the input {name!r} ({wanted.type}) is missing", where, hint)


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

"""What a kind of step is: typed parameters in, one artifact out.

A kind says what its artifact *is* (`params_type`, which enters the key) apart from where and how it is made
(`runtime_type`, which never does): two pydantic models, so that one cannot leak into the other. A user's own kind is
a subclass of `Kind` in their package, found by the entry point group ``evo.kinds`` or named in the pipeline by import
path (``uses: my_package.my_module:MyKind``).
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from evo_core.errors import ConfigError

if TYPE_CHECKING:
    from tasks.store.artifact import Artifact
    from tasks.store.store import Store

P = TypeVar("P", bound=BaseModel)
R = TypeVar("R", bound=BaseModel)

Facts = dict[str, Any]
"""What is known about an artifact before it is made: `vocab_size`, `types`, `lines`, ... A kind reads the facts of
its inputs in `check` and passes on what it knows in `facts`; so a vocabulary that does not fit the model is found
when the pipeline is planned and not after an hour of tokenizing."""


class Params(BaseModel):
    """Base of every kind's parameters: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Runtime(BaseModel):
    """Base of every kind's runtime: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Input:
    """One input of a kind: the type of artifact it takes and whether it may be left out.

    Attributes:
        also: other types that hold what is asked for (a model holds its tokenizer).
    """

    type: str
    optional: bool = False
    also: tuple[str, ...] = ()

    def takes(self, type_: str) -> bool:
        """Whether an artifact of that type will do."""
        return type_ == self.type or type_ in self.also


@dataclass
class StepContext(Generic[P, R]):
    """All that a running step may touch.

    Attributes:
        name: the step's name in the pipeline.
        key: the artifact's key, 64 hex digits.
        folder: the attempt's folder, empty; whatever is in it when `run` returns is the artifact.
        work: a folder that all attempts at this key share (training checkpoints).
        state: the key's state folder (progress.json, job.json).
        inputs: input name to committed artifact.
        anew: the step was forced: what earlier runs left may be what has to be made anew.
        stop: set when the run is told to stop; a kind that waits must watch it.
        on_progress: called with {"done", "total", "unit", ...} now and then.
        say: called with a line worth showing to a person.
        digests: filled by a kind that knows the blake3 of files it leaves in `folder` and has made them durable: path
            below the folder to digest. They are not read again for the manifest.
        objects: filled by a kind whose artifact means objects of the store instead of holding their content: their
            ids. The manifest names them, so that whoever clears the store knows they are in use.
    """

    name: str
    key: str
    attempt: int
    params: P
    runtime: R
    inputs: Mapping[str, Artifact]
    folder: Path
    work: Path
    state: Path
    store: Store
    stop: threading.Event
    on_progress: Callable[[dict[str, Any]], None]
    say: Callable[[str], None]
    source_digest: str | None = None
    anew: bool = False
    digests: dict[str, str] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)


def plain_params(params: BaseModel) -> dict[str, Any]:
    """Parameters as plain data in which different values stay different, in the same order in every process.

    Raises:
        ConfigError: a value that JSON has no form for, such as NaN in a parameter of any type.
    """
    data = {}
    for name in type(params).model_fields:
        try:
            plain = params.model_dump(mode="json", include={name})[name]
        except ValueError as error:
            raise ConfigError(f"cannot be part of a key: {error}", key=name) from None
        data[name] = _told_apart(params.model_dump(include={name})[name], plain, name)
    return data


def _told_apart(value: Any, plain: Any, at: str) -> Any:
    """The plain form of a value, where pydantic's JSON form is not good enough."""
    if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and plain is None)):
        shown = ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        raise ConfigError(f"{shown} cannot be part of a key", key=at, hint="give a finite number, or null")
    if isinstance(value, dict) and isinstance(plain, dict) and len(value) == len(plain):
        pairs = zip(value.values(), plain.items(), strict=True)
        return {name: _told_apart(item, form, f"{at}.{name}") for item, (name, form) in pairs}
    if isinstance(value, dict | list | tuple | set | frozenset) and isinstance(plain, list):
        told = [_told_apart(item, form, f"{at}.{i}") for i, (item, form) in enumerate(zip(value, plain, strict=True))]
        # A set's order changes from process to process.
        return sorted(told, key=repr) if isinstance(value, set | frozenset) else told
    if isinstance(value, dict) and isinstance(plain, dict):
        raise ConfigError("holds keys that are the same as text", key=at, hint="make all its keys text")
    return plain


class Kind(ABC, Generic[P, R]):
    """Base class of step kinds. Subclasses set the class attributes and implement `run`."""

    name: ClassVar[str]
    """How a pipeline names it: ``data.tokenize``."""
    version: ClassVar[int] = 1
    """Raised by the author when the same parameters give another artifact."""
    inputs: ClassVar[Mapping[str, Input]] = {}
    output: ClassVar[str]
    """The type of the artifact, which inputs ask for: raw, tokenizer, tokens, dataset, model, scores, samples."""
    params_type: type[BaseModel] = Params
    runtime_type: type[BaseModel] = Runtime
    introduced: ClassVar[Mapping[str, Any]] = {}
    """Parameters that came after version 1 of the kind, with the value that means what was done before: a parameter
    equal to it is left out of the key, so that adding one re-runs nothing."""

    def identity(self, params: P, runtime: R) -> dict[str, Any]:
        """What enters the key, as plain data. The default is every parameter.

        Raises:
            ConfigError: a parameter holds what plain data cannot tell apart or cannot hold.
        """
        payload = plain_params(params)
        return {k: v for k, v in payload.items() if not (k in self.introduced and v == self.introduced[k])}

    def identity_by_facts(self, params: P, facts: Mapping[str, Facts]) -> dict[str, Any]:
        """What enters the key beside `identity` because of what is known about the inputs, as plain data.

        For a kind that makes something else of the same inputs from some size on: the version of that. The default is
        nothing.

        Args:
            facts: input name to what is known about it.
        """
        return {}

    def files(self, params: P) -> list[Path]:
        """Files named by parameters (configs, prompts), for messages and lineage; their content is in `identity`."""
        return []

    def check(self, params: P, runtime: R, facts: Mapping[str, Facts], where: str) -> None:
        """Raise `ConfigError` when this step cannot work, before anything runs.

        Args:
            facts: input name to what is known about it.
            where: the step's place in the file (``steps.model``), to name keys by.
        """

    def facts(self, params: P, runtime: R, facts: Mapping[str, Facts]) -> Facts:
        """What is known about the artifact before it is made."""
        return {}

    @abstractmethod
    def run(self, ctx: StepContext[P, R]) -> dict[str, Any]:
        """Make the artifact in `ctx.folder`; return its statistics (plain data, shown in tables)."""


class Source(Kind[P, R]):
    """A kind without inputs whose content comes from outside: its key follows what is there, not what is asked for."""

    @abstractmethod
    def digest(self, params: P, remember: Path) -> tuple[str, Facts]:
        """Digest of what is there now, and facts about it; called when planning, so it must be cheap.

        Args:
            remember: a file of the store in which digests of unchanged files are remembered.

        Raises:
            ConfigError: nothing is there (missing folder, empty corpus).
        """

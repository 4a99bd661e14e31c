"""The one resolver of configuration files, for training jobs and for pipelines.

``base:`` names a file, or a list of files, on whose data this file's is laid (blocks are merged key by key,
anything else is replaced); overrides ``KEY=VALUE`` come on top; then references are resolved.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evo_core.config import references
from evo_core.config.plain_data import DEEPEST
from evo_core.config.secrets import Secrets
from evo_core.config.suggest import suggest
from evo_core.config.types import SHOWN, describe
from evo_core.config.yaml_file import parse_yaml, read_yaml
from evo_core.errors import ConfigError

MOST_FILES = 100
"""Files that one configuration may be based on."""

_ANY_TEXT = ("generation.", "job_name", "JOB_NAME")
"""Keys of texts with any character. In others a NUL would end the name of a file or a variable."""


class Resolved(NamedTuple):
    """A document's data with all references resolved.

    Attributes:
        values: with the environment's values: for the program, never for a file.
        written: with ``${oc.env:NAME}`` in their place: fit to be written.
        secrets: what came from the environment, and how it is shown.
    """

    values: dict[str, Any]
    written: dict[str, Any]
    secrets: Secrets


class Document:
    """A file's data with its bases and overrides, references not resolved yet, and where each key was written."""

    def __init__(self, file: str | Path, data: dict[str, Any], lines: Mapping[str, int]) -> None:
        self.file = Path(file)
        self.data = data
        self.places: dict[str, tuple[str | Path, int | None]] = {key: (self.file, line) for key, line in lines.items()}

    def lay_over(self, other: Document) -> None:
        """Lays another document's data over this one's."""
        self.data = merge(self.data, other.data)
        self.places.update(other.places)
        self.file = other.file

    def override(self, overrides: Iterable[str]) -> None:
        """Applies overrides ``KEY=VALUE``, in order.

        Raises:
            ConfigError: an override is not of that form, leads through something that is no block, or gives a var
                that nothing refers to.
        """
        stated = _below(self.data.get("vars"), "vars.")
        given = []
        for text in overrides:
            key, value = parse_override(text)
            _put(self.data, key, value, text)
            self.forget_places(key)
            self.places[key] = (f"--set {key}", None)
            given += [(key, text)] if key != "vars" else [(f"vars.{name}", text) for name in _below(value, "")]
        self._check_vars([(key, text) for key, text in given if key.startswith("vars.")], stated)

    def _check_vars(self, given: list[tuple[str, str]], stated: set[str]) -> None:
        """A var that an override gives is one of the file's, or one that it refers to and leaves open."""
        if not given or references.name_by_value(self.data):
            return
        known = stated | set(references.named(self.data))
        names = sorted(name.removeprefix("vars.") for name in known if name.startswith("vars."))
        for key, text in given:
            if not any(name == key or name.startswith(f"{key}.") for name in known):
                var = key.removeprefix("vars.")
                hint = f"vars: {', '.join(names)}" if names else "the file has no vars"
                raise ConfigError(f"there is no var {var!r}{suggest(var, names)}", key=f"--set {text}", hint=hint)

    def forget_places(self, key: str) -> None:
        """Forgets where a key and all below it were written."""
        for known in [known for known in self.places if known == key or known.startswith(f"{key}.")]:
            del self.places[known]

    def place(self, key: str) -> tuple[str | Path, int | None]:
        """Where a dotted key is written: (file, line); of the nearest key above it where it is not."""
        while key:
            if key in self.places:
                return self.places[key]
            key = key.rpartition(".")[0]
        return self.file, None

    def error(self, message: str, key: str, hint: str | None = None) -> ConfigError:
        """An error that names the file, the key and its line."""
        file, line = self.place(key)
        return ConfigError(message, file=file, line=line, key=key, hint=hint)

    def resolved(self, needed: references.Needed = lambda key: True) -> Resolved:
        """The data with all references resolved.

        Args:
            needed: whether the value of a dotted key is; of another one a variable that is not set stays a reference.

        Raises:
            ConfigError: a reference that leads nowhere, or a variable of the environment that is needed and not set.
        """
        data = self._without_references()
        values = references.with_environment(data, self.place, needed)
        secrets = Secrets(references.environment_references(data), references.environment_texts(data))
        return Resolved(values, references.without_environment(data), secrets)

    def _without_references(self) -> dict[str, Any]:
        for key, text in references.strings(self.data):
            if "\0" in text and not key.startswith(_ANY_TEXT):
                file, line = self.place(key)
                raise ConfigError("holds a NUL character", file=file, line=line, key=key)
        return references.resolve_values(self.data, self.place)

    def values(self) -> dict[str, Any]:
        """The data with all references resolved, those to the environment included: not to be written."""
        return references.with_environment(self._without_references(), self.place)

    def written(self) -> dict[str, Any]:
        """The data with all references resolved but those to the environment: fit to be written."""
        return references.without_environment(self._without_references())

    def environment(self) -> dict[str, str]:
        """The dotted keys whose values need the environment, with their texts such as ``${oc.env:NAME}``."""
        return references.environment_references(self._without_references())


def read_document(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """A YAML file with its chain of bases and the overrides.

    Raises:
        ConfigError: a file is missing, is no YAML map or is its own base, or an override cannot be applied.
    """
    document = _with_bases(Path(path), (), Counter())
    document.override(overrides)
    return document


def load_yaml(
    path: str | Path, overrides: Sequence[str] = (), *, resolve: bool = True, environment: bool = True
) -> dict[str, Any]:
    """The data of a YAML file.

    Args:
        path: the file; ``base:`` in it is relative to its folder.
        overrides: texts ``KEY=VALUE``; a key is a path such as ``steps.model.params.adam.lr``, the value is YAML.
        resolve: False leaves every reference as it is written.
        environment: False leaves references to the environment as they are: such data may be written to a file.

    Raises:
        ConfigError: with file, line and key.
    """
    document = read_document(path, overrides)
    if not resolve:
        return document.data
    return document.values() if environment else document.written()


def line_of(path: str | Path, dotted_key: str) -> int | None:
    """The line of a key in a YAML file, or of the nearest key above it; None where there is none."""
    lines = read_yaml(path).lines
    while dotted_key:
        if dotted_key in lines:
            return lines[dotted_key]
        dotted_key = dotted_key.rpartition(".")[0]
    return None


def _below(data: Any, prefix: str) -> set[str]:
    """The dotted keys of nested maps and lists."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return {key for name, value in items for key in (f"{prefix}{name}", *_below(value, f"{prefix}{name}."))}


def merge(under: Any, over: Any) -> Any:
    """``over`` laid on ``under``: maps are merged key by key, anything else of ``over`` replaces."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    return {**under, **{key: merge(under[key], value) if key in under else value for key, value in over.items()}}


def parse_override(text: str) -> tuple[str, Any]:
    """``"adam.lr=3e-4"`` as ``("adam.lr", 0.0003)``.

    Raises:
        ConfigError: there is no ``=``, a part of the key is empty, or the value is no YAML.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")) or key.count(".") >= DEEPEST:
        raise ConfigError(f"{describe(text)} is not of the form KEY=VALUE", hint="for example adam.lr=3e-4")
    return key, parse_yaml(value, f"--set {key}").data


def _with_bases(path: Path, below: tuple[Path, ...], read: Counter[str]) -> Document:
    read["files"] += 1
    data, lines = read_yaml(path)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError("a configuration is a map of keys", file=path)
    own = Document(path, data, lines)
    bases = data.pop("base", None)
    if bases is None:
        return own
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError("must be a file or a list of files", file=path, line=lines.get("base"), key="base")
    chain = (*below, _real(path))
    document = Document(path, {}, {})
    for base in bases:
        base_path = path.parent / base
        if read["files"] > MOST_FILES:
            message = f"more than {MOST_FILES} files are read, each as often as it is a base"
            raise ConfigError(message, file=path, line=lines.get("base"), key="base")
        if _real(base_path) in chain:
            raise ConfigError(f"{base} is based on this file", file=path, line=lines.get("base"), key="base")
        if not _is_file(base_path):
            message = f"there is no file {base_path}" if len(base) < SHOWN else f"there is no file {describe(base)}"
            raise ConfigError(message, file=path, line=lines.get("base"), key="base")
        document.lay_over(_with_bases(base_path, chain, read))
    document.lay_over(own)
    return document


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for one
        return False


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises where links lead in a circle


def _put(data: dict[str, Any], key: str, value: Any, text: str) -> None:
    *path, last = key.split(".")
    here: Any = data
    walked: list[str] = []
    for name in path:
        walked.append(name)
        if isinstance(here, list):
            here = here[_index(here, name, walked, text)]
        else:
            if here.get(name) is None:
                here[name] = {}
            here = here[name]
        if not isinstance(here, dict | list):
            raise ConfigError(f"{'.'.join(walked)} is a value, not a block of keys", key=f"--set {text}")
    if isinstance(here, list):
        here[_index(here, last, [*walked, last], text)] = value
    else:
        here[last] = value


def _index(items: list[Any], name: str, walked: list[str], text: str) -> int:
    if not name.isdecimal() or int(name) >= len(items):
        where = ".".join(walked[:-1])
        raise ConfigError(f"{where} is a list of {len(items)}: no item {name}", key=f"--set {text}")
    return int(name)

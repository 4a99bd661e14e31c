"""Reading a training job's configuration from a YAML or ``.py`` file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evo_core.config import references
from evo_core.config.problems import one_by_one, raise_all
from evo_core.config.python_file import run_python_config
from evo_core.config.report import conceal
from evo_core.config.resolve import Document, read_document
from evo_core.config.schema.train_config import TrainConfig
from evo_core.errors import ConfigError

_ALIASES = {"JOB_NAME": "job_name"}


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, blocks: Mapping[str, Any] | None = None
) -> TrainConfig:
    """A training job's configuration.

    Args:
        path: a ``.yaml`` file, or a ``.py`` file of the original's form (which is executed).
        overrides: texts ``KEY=VALUE`` such as ``adam.lr=3e-4``, applied last.
        blocks: nested plain data laid over the file's.

    Raises:
        ConfigError: with file, line and key; several mistakes are reported together.
    """
    document = read_job(Path(path))
    if blocks:
        laid_over = Document(document.file, _under_one_name(dict(blocks)), {})
        document.lay_over(laid_over)
    document.override(_ALIASES.get(key, key) + rest for key, rest in map(_split, overrides))
    resolved = references.resolve_values(document.data, document.place)
    values = references.with_environment(resolved, document.place)
    from_environment = references.environment_references(resolved)
    for data in (values, from_environment):
        for key in [key for key in data if key == "vars" or key.startswith("vars.")]:
            del data[key]
    try:
        return TrainConfig.from_plain(values, from_environment)
    except ConfigError as error:
        texts = _texts(values, from_environment)
        errors = [conceal(_placed(one, document), from_environment, texts) for one in one_by_one(error)]
    raise_all(sorted(errors, key=lambda one: (str(one.file), one.line or 0)))
    raise AssertionError("a rejected configuration without an error")


def read_job(path: Path) -> Document:
    """The file's data before overrides and references.

    Raises:
        ConfigError: it cannot be read, or is of another kind than ``.yaml``, ``.yml`` and ``.py``.
    """
    if path.suffix in (".yaml", ".yml"):
        document = read_document(path)
    elif path.suffix == ".py":
        document = Document(path, *run_python_config(path))
    else:
        raise ConfigError("is no configuration: it must end in .yaml, .yml or .py", file=path)
    document.data = _under_one_name(document.data)
    for alias, name in _ALIASES.items():
        if alias in document.places:
            document.places[name] = document.places.pop(alias)
    return document


def _under_one_name(data: dict[str, Any]) -> dict[str, Any]:
    return {_ALIASES.get(key, key): value for key, value in data.items()}


def _split(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    return key.strip(), equals + value


def _placed(error: ConfigError, document: Document) -> ConfigError:
    file, line = document.place(error.key or "")
    return ConfigError(error.message, file=file, line=line, key=error.key, hint=error.hint)


def _texts(values: dict[str, Any], keys: Mapping[str, str]) -> dict[str, str]:
    """The texts at some dotted keys of nested data."""
    texts: dict[str, str] = {}
    for key in keys:
        value: Any = values
        for name in key.split("."):
            value = value[int(name)] if isinstance(value, list) else value[name]
        if isinstance(value, str):
            texts[key] = value
    return texts

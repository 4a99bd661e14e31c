"""Reading a training job's configuration from a YAML or ``.py`` file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evo_core.config.errors import one_by_one, raise_all
from evo_core.config.families import SHIPPED
from evo_core.config.own_code import refuse_code_beside
from evo_core.config.python_file import run_python_config
from evo_core.config.resolve import Document, Resolved, read_document
from evo_core.config.schema.train_config import INFERENCE, SAVED, TrainConfig
from evo_core.config.secrets import Secrets
from evo_core.errors import ConfigError

_ALIASES = {"JOB_NAME": "job_name"}
_OF_THE_MODEL = ("model", "use_fp32_norm")
_OF_A_RUN = ("monitor",)
_OF_TRAINING = ("zero1", "weight")
_WAYS = {"tensor": ("mode",), "pipeline": ("mode", "interleaved_overlap")}


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    blocks: Mapping[str, Any] | None = None,
    inference: bool = False,
) -> TrainConfig:
    """A training job's configuration.

    Args:
        path: a ``.yaml`` file, or a ``.py`` file of InternEvo's form (which is executed).
        overrides: texts ``KEY=VALUE`` such as ``adam.lr=3e-4``, applied last.
        blocks: nested plain data laid over the file's.
        inference: no training is meant: how it exchanges (``tensor.mode``, ``weight``), in which order it computes
            (``pipeline.mode``, ``num_chunks``, …), what it splits besides (``zero1``) and who watches (``monitor``) is
            not read. Ranks that share a model trained with isp exchange as by mtp, which that model may not divide by:
            then ``tensor.size`` is what is wrong.

    Raises:
        ConfigError: with file, line and key; several mistakes are reported together.
    """
    document = read_laid_over(path, overrides, blocks)
    if not inference:
        return checked(document)
    document.data = _of_inference(document.data)
    return _checked(document, document.resolved(), context=INFERENCE)


def read_laid_over(
    path: str | Path, overrides: Sequence[str] = (), blocks: Mapping[str, Any] | None = None
) -> Document:
    """A job's file with blocks and overrides laid over it, not checked yet.

    Raises:
        ConfigError: it cannot be read, or an override cannot be applied.
    """
    document = read_job(Path(path))
    if blocks:
        laid_over = Document(document.file, _under_one_name(dict(blocks)), {})
        document.lay_over(laid_over)
    document.override(_ALIASES.get(key, key) + rest for key, rest in map(_split, overrides))
    return document


def checked(document: Document) -> TrainConfig:
    """The configuration that a document means.

    Raises:
        ConfigError: as `load_config`.
    """
    return _checked(document, document.resolved())


def _of_inference(data: Mapping[str, Any]) -> dict[str, Any]:
    """A job's data without what is of training alone: in its layout, and who watches over it."""
    kept = {name: given for name, given in data.items() if name not in _OF_A_RUN}
    parallel, model = data.get("parallel"), data.get("model")
    if isinstance(parallel, dict):
        kept["parallel"] = {
            name: _without(given, _WAYS.get(name, ())) for name, given in parallel.items() if name not in _OF_TRAINING
        }
    # A model type of a user's own may mean something else by it.
    if isinstance(model, dict) and {data.get("model_type"), model.get("model_type")} <= {None, *SHIPPED}:
        kept["model"] = _without(model, ("num_chunks",))
    return kept


def _without(block: Any, names: Sequence[str]) -> Any:
    """A block without some of its keys; a bare value is left as it is."""
    return {name: given for name, given in block.items() if name not in names} if isinstance(block, dict) else block


def load_saved_config(path: Path) -> TrainConfig:
    """The configuration that lies with weights.

    Its run may have been elsewhere: variables of the environment that are not set here stay references (a folder, an
    address of alerts) wherever they do not describe the model.

    Raises:
        ConfigError: as `load_config`; of a variable that is needed and not set; or of a model type whose code lies with
            the weights.
    """
    document = read_job(path)
    refuse_code_beside(path, document.data.get("model_type"))
    try:
        return _checked(document, document.resolved(lambda key: key.startswith(_OF_THE_MODEL)), context=SAVED)
    except ConfigError:
        document.resolved()  # a reference may be what is wrong, in the place of a number: then this says so
        raise


def _checked(document: Document, resolved: Resolved, **options: Any) -> TrainConfig:
    values, _, secrets = resolved
    values.pop("vars", None)
    from_environment = {key: text for key, text in secrets.references.items() if key.partition(".")[0] != "vars"}
    try:
        return TrainConfig.from_plain(values, from_environment, **options)
    except ConfigError as error:
        errors = [_placed(one, document, secrets) for one in one_by_one(error)]
    raise_all(_told(errors))
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


def _placed(error: ConfigError, document: Document, secrets: Secrets) -> ConfigError:
    file, line = document.place(error.key or "")
    message = secrets.conceal(error.message, error.key)
    return ConfigError(message, file=file, line=line, key=error.key, hint=error.hint)


def _told(errors: list[ConfigError]) -> list[ConfigError]:
    """Errors in the order of their lines; a key that is misspelt is not also told as missing."""
    meant = set()
    for one in errors:
        above, dot, _ = (one.key or "").rpartition(".")
        meant |= {f"{above}{dot}{near}" for near in re.findall(r'unknown key; did you mean "(.*)"', one.message)}
    told = [one for one in errors if not (one.message == "is required" and one.key in meant)]
    return sorted(told, key=lambda one: (str(one.file), one.line or math.inf))

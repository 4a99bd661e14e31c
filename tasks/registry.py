"""Which kinds there are: Evo's own, those that installed packages bring, and those named by import path."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from evo_core.config.suggest import suggest
from evo_core.errors import ConfigError, code_error
from tasks.kind import Kind

BUILT_IN = {
    "source.files": "tasks.source:Files",
    "source.sample_text": "tasks.sample_text:SampleText",
    "source.sample_instructions": "tasks.sample_text:SampleInstructions",
    "tokenizer.train": "tasks.tokenizer:TrainTokenizer",
    "data.tokenize": "tasks.tokenize:Tokenize",
    "data.tokenize_sft": "tasks.tokenize_sft:TokenizeSft",
    "data.shard": "tasks.shard:Shard",
    "train.pretrain": "tasks.train:Pretrain",
    "train.finetune": "tasks.train:Finetune",
    "model.import": "tasks.convert:ImportModel",
    "model.export": "tasks.convert:ExportModel",
    "eval.holdout": "tasks.evaluate:Holdout",
    "eval.tasks": "tasks.eval_tasks:TaskScores",
    "generate.samples": "tasks.generate:Samples",
}
"""A kind's module is imported when a pipeline uses it, so that planning stays quick."""

GROUP = "evo.kinds"
"""The entry point group in which a package lists its kinds: ``my.kind = "my_package.module:MyKind"``."""


def known_kinds() -> dict[str, str]:
    """Every named kind and where it is defined."""
    return BUILT_IN | {point.name: point.value for point in entry_points(group=GROUP)}


@cache
def kind(name: str, folder: Path | None = None) -> Kind[Any, Any]:
    """The kind that a pipeline names.

    Args:
        folder: where the pipeline lies. Modules beside it are found after those that are installed.

    Raises:
        ConfigError: unknown name (with a suggestion), or an import path that does not lead to a `Kind`.
    """
    known = known_kinds()
    target = known.get(name, name)
    if ":" not in target:
        raise ConfigError(
            f"there is no step kind {name!r}{suggest(name, known)}",
            hint=f"kinds: {', '.join(sorted(known))}; or an import path package.module:Class",
        )
    if folder is not None and name not in known:
        _search_last(folder.absolute(), target.partition(":")[0])
    return _made(name, target)


def _made(name: str, target: str) -> Kind[Any, Any]:
    """The kind at an import path, if it is one that can run. Its module is the user's code: anything may happen."""
    module_name, _, attribute = target.partition(":")
    whole = f"the step kind {name!r} cannot be imported from {target}"
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing_itself = isinstance(error, ModuleNotFoundError) and error.name == module_name
        raise ConfigError(f"{whole}: {error if missing_itself else code_error(error)}") from error
    found = getattr(module, attribute, None)
    if found is None:
        raise ConfigError(f"{whole}: there is no {attribute!r} in it{suggest(attribute, vars(module))}")
    if not (isinstance(found, type) and issubclass(found, Kind)):
        raise ConfigError(f"{target} is not a step kind", hint="subclass tasks.kind.Kind")
    if missing := sorted(_missing(found)):
        raise ConfigError(
            f"the step kind {target} lacks {', '.join(missing)}", hint="docs/pipelines.md shows a whole one"
        )
    try:
        return found()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"the step kind {target} cannot be made: {code_error(error)}") from error


def _missing(found: type[Kind[Any, Any]]) -> set[str]:
    """What a subclass must define and does not."""
    stated = {name for name in ("name", "output") if not isinstance(getattr(found, name, None), str)}
    models = [name for name in ("params_type", "runtime_type") if not _is_model(getattr(found, name, None))]
    return stated.union(models) | set(getattr(found, "__abstractmethods__", ()))


def _is_model(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, BaseModel)


_folders: list[str] = []
"""Folders of pipelines on the import path, the newest first."""


def _search_last(folder: Path, module_name: str) -> None:
    """Let modules in a pipeline's folder be imported, now and while its steps run, without hiding any other.

    A module of the same name that another pipeline of this process brought makes room for this one's.
    """
    here = str(folder)
    sys.path[:] = [path for path in sys.path if path not in _folders]
    _folders[:] = [here, *(path for path in _folders if path != here)]
    sys.path += [path for path in _folders if path not in sys.path]
    importlib.invalidate_caches()
    package = module_name.partition(".")[0]
    loaded = getattr(sys.modules.get(package), "__file__", None)
    others = [Path(path) for path in _folders if path != here]
    if loaded is not None and any(Path(loaded).is_relative_to(path) for path in others):
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            del sys.modules[name]

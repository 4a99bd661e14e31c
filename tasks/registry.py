"""Which kinds there are: Evo's own, those that installed packages bring, and those named by import path."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from evo_core.config.suggest import suggest
from evo_core.errors import ConfigError
from tasks.kind import Kind

BUILT_IN = {
    "source.files": "tasks.source:Files",
    "source.sample_text": "tasks.sample_text:SampleText",
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
def kind(name: str) -> Kind[Any, Any]:
    """The kind that a pipeline names.

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
    module_name, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the step kind {name!r} cannot be imported from {target}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Kind)):
        raise ConfigError(f"{target} is not a step kind", hint="subclass tasks.kind.Kind")
    return found()

"""`eval.tasks`: multiple-choice, cloze and generation tasks from local files, scored by likelihood through lm-eval."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr

from evo_core.errors import ConfigError
from evo_core.storage.files import copy_file
from tasks import kind
from tasks.kind import Facts, Input, StepContext
from tasks.launch.inference import InferenceKind, InferenceRuntime
from tasks.launch.step import launch
from tasks.params.paths import PipelinePath
from tasks.store.digests import combine, digest_file
from tasks.store.json_file import read_json
from tasks.train import MODEL

SCORES = "scores.json"
TASKS = "tasks"
"""The copy of the task files in the artifact."""


class Params(kind.Params):
    """What is asked."""

    tasks: PipelinePath = Field(
        description="a task file in lm-eval's YAML form, or a folder of them; everything in that folder enters the key "
        "by its content, so keep a set of tasks and its data in a folder of its own"
    )
    max_length: int | None = Field(None, ge=1, description="tokens read at once; default: the model's trained length")

    _digest: str = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Read the files once, when the pipeline is read: they enter the key.

        Raises:
            ConfigError: there are none.
        """
        if not self.tasks.exists():
            raise ConfigError(f"there is no task file or folder {self.tasks}", key="tasks")
        self._digest = digest(self.folder)

    @property
    def folder(self) -> Path:
        """The folder of the task files."""
        return self.tasks if self.tasks.is_dir() else self.tasks.parent

    @property
    def digest(self) -> str:
        """Of the folder's files, when the pipeline was read."""
        return self._digest


class TaskScores(InferenceKind[Params]):
    """Runs `evo_core.evaluate --tasks`."""

    name = "eval.tasks"
    version = 3
    inputs: ClassVar = {"model": Input("model")}
    output = "task_scores"
    params_type = Params

    def identity(self, params: Params, runtime: InferenceRuntime) -> dict[str, Any]:
        """The tasks by their content; of a single file also which it is."""
        chosen = params.tasks.name if params.tasks.is_file() else None
        return {"tasks": params.digest, "file": chosen, "max_length": params.max_length}

    def check(self, params: Params, runtime: InferenceRuntime, facts: Mapping[str, Facts], where: str) -> None:
        """Refuse what could not be scored, besides a layout that does not fit.

        Raises:
            ConfigError: lm-eval is not installed.
        """
        super().check(params, runtime, facts, where)
        if importlib.util.find_spec("lm_eval") is None:
            raise ConfigError("this kind needs the package lm-eval", key=where, hint='pip install "evo-lm[eval]"')

    def files(self, params: Params) -> list[Path]:
        return _files(params.folder)

    def run(self, ctx: StepContext[Params, InferenceRuntime]) -> dict[str, Any]:
        """Score the model on a copy of the task files, which the artifact keeps: it says what was asked.

        Raises:
            ConfigError: the files are no longer those that the key was made of.
        """
        params, copy = ctx.params, ctx.folder / TASKS
        for file in _files(params.folder):
            copy_file(file, copy / file.relative_to(params.folder))
        if digest(copy) != params.digest:
            message = "the task files changed while the run was starting"
            raise ConfigError(message, file=params.folder, hint="run again when they are complete")
        place = copy / params.tasks.name if params.tasks.is_file() else copy
        args = ["--model", str(ctx.inputs["model"].path / MODEL), "--tasks", str(place)]
        args += ["--output", str(ctx.folder / SCORES)]
        if params.max_length is not None:
            args += ["--max-length", str(params.max_length)]
        launch(ctx, "evo_core.evaluate", *args, *ctx.runtime.parallel.options)
        return statistics(read_json(ctx.folder / SCORES) or {})


def digest(folder: Path) -> str:
    """sha256 over names and contents of all files of a folder."""
    return combine((str(file.relative_to(folder)), digest_file(file).digest) for file in _files(folder))


def statistics(scores: Mapping[str, Any]) -> dict[str, Any]:
    """How many tasks and documents, and the value of each metric: ``{"capitals_en acc": 0.5}``."""
    tasks: Mapping[str, Any] = scores.get("tasks", {})
    found: dict[str, Any] = {"tasks": len(tasks), "documents": sum(task["documents"] for task in tasks.values())}
    for name, task in {**tasks, **scores.get("groups", {})}.items():
        found |= {f"{name} {metric}": value["value"] for metric, value in task["metrics"].items()}
    return found


def _files(folder: Path) -> list[Path]:
    """All files that could matter: not hidden ones, nor what Python keeps of modules."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
    )

"""`eval.holdout`: loss, perplexity and accuracy per type on the held-out part, beside n-gram baselines."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from tasks import kind
from tasks.kind import Input, StepContext
from tasks.launch.inference import InferenceKind, InferenceRuntime
from tasks.launch.step import launch
from tasks.store.json_file import read_json
from tasks.train import MODEL

SCORES = "scores.json"


class Params(kind.Params):
    """What is measured."""

    baselines: bool = Field(True, description="unigram and bigram models of the training tokens, on the same targets")


class Holdout(InferenceKind[Params]):
    """Runs `evo_core.evaluate` on the dataset's held-out documents."""

    name = "eval.holdout"
    version = 2
    inputs: ClassVar = {"model": Input("model"), "data": Input("dataset")}
    output = "scores"
    params_type = Params

    def run(self, ctx: StepContext[Params, InferenceRuntime]) -> dict[str, Any]:
        data = ctx.inputs["data"].path
        args = ["--model", str(ctx.inputs["model"].path / MODEL), "--data", str(data / "valid")]
        args += ["--output", str(ctx.folder / SCORES)]
        if ctx.params.baselines:
            args += ["--baselines", str(data / "train")]
        launch(ctx, "evo_core.evaluate", *args, *ctx.runtime.parallel.options)
        return read_json(ctx.folder / SCORES) or {}

"""`generate.samples`: texts that a model writes on from prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from evo_core.errors import ConfigError
from evo_core.storage.files import write_file
from tasks import kind
from tasks.kind import Input, StepContext
from tasks.launch.inference import InferenceKind, InferenceRuntime
from tasks.launch.job_file import write_job
from tasks.launch.step import launch
from tasks.train import MODEL

SAMPLES = "samples.jsonl"


class Params(kind.Params):
    """What is asked for. Every key but `prompts` and `seed` is one of a config's `generation` block."""

    prompts: dict[str, list[str]] = Field(
        description="type of text to prompts; a list, or a file with a prompt a line, counts as one type"
    )
    max_new_tokens: int = Field(64, ge=1)
    do_sample: bool = True
    temperature: float = Field(1.0, gt=0)
    top_k: int = Field(50, ge=0, description="0: all")
    top_p: float = Field(1.0, gt=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    num_beams: int = Field(1, ge=1, description="more than 1: beam search")
    length_penalty: float = 1.0
    batch_size: int = Field(8, ge=1)
    seed: int = 1024

    @field_validator("prompts", mode="before")
    @classmethod
    def _read(cls, given: Any, info: ValidationInfo) -> Any:
        """A file enters the key by its content, read here."""
        if isinstance(given, str):
            path = Path((info.context or {}).get("folder", "")) / given
            if not path.is_file():
                raise ConfigError(f"the file of prompts {path} does not exist", key="prompts")
            given = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if isinstance(given, list):
            given = {"samples": given}
        if isinstance(given, dict) and not any(given.values()):
            raise ConfigError("there is no prompt", key="prompts", hint="give at least one")
        return given


class Samples(InferenceKind[Params]):
    """Runs `evo_core.generate` on the prompts, in order."""

    name = "generate.samples"
    version = 3
    inputs: ClassVar = {"model": Input("model")}
    output = "samples"
    params_type = Params
    introduced: ClassVar = {"num_beams": 1, "length_penalty": 1.0}

    def run(self, ctx: StepContext[Params, InferenceRuntime]) -> dict[str, Any]:
        from evo_core.config import load_config

        model = ctx.inputs["model"].path
        types = [type_ for type_, prompts in ctx.params.prompts.items() for _ in prompts]
        generation = ctx.params.model_dump(exclude={"prompts", "seed"}) | {
            "ckpt_folder": f"local:{model / MODEL}",
            "output_folder": str(ctx.folder),
            "prompts": [prompt for prompts in ctx.params.prompts.values() for prompt in prompts],
        }
        settings: dict[str, Any] = {f"generation.{name}": value for name, value in generation.items()}
        job = ctx.folder / "config.yaml"
        # The layout that the model was trained at says nothing of this one.
        settings |= {"seed": ctx.params.seed, "parallel": {}}
        write_job(load_config(model / "config.yaml", inference=True), settings, job, inference=True)
        launch(ctx, "evo_core.generate", "--config", str(job), *ctx.runtime.parallel.options)
        samples = ctx.folder / SAMPLES
        rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
        typed = [{"type": type_, **row} for type_, row in zip(types, rows, strict=True)]
        write_file(samples, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in typed))
        return {"samples": len(typed), "tokens": sum(len(row["ids"]) for row in typed)}

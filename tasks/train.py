"""`train.pretrain` and `train.finetune`: a dataset to a model, by `evo_core.train` on the nodes of the runtime."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, Field, PrivateAttr, ValidationInfo, model_validator

from evo_core.errors import ConfigError
from evo_core.storage.files import copy_file, link_or_copy, link_tree
from tasks import kind
from tasks.kind import Facts, Input, Kind, StepContext
from tasks.launch.job_file import write_job
from tasks.launch.launcher import LaunchRuntime
from tasks.launch.step import launch
from tasks.params.paths import PipelinePath
from tasks.tokenizer import TOKENIZER

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

MODEL = "model"
METRICS = "metrics.jsonl"
OWNED = ("data.train_folder", "data.valid_folder", "data.tokenizer_path", "ckpt.save_ckpt_folder", "tensorboard_folder")
"""Keys that the step sets: where things lie is the pipeline's business."""


class Params(kind.Params):
    """A training job: the file `config`, with any of its blocks laid over it (`adam: {lr: 3e-4}`)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    config: PipelinePath = Field(description="a file in configs/train/, YAML or InternEvo's .py")
    _job: TrainConfig = PrivateAttr()

    @model_validator(mode="after")
    def _load(self, info: ValidationInfo) -> Params:
        context, over = info.context or {}, self.model_extra or {}
        written = context.get("written", over)  # with references: the job's files shall hold no secret
        self._job = _load_job(self.config, {name: written[name] for name in over}, context)
        return self

    @property
    def job(self) -> TrainConfig:
        """The checked training configuration."""
        return self._job


class _Train(Kind[Params, LaunchRuntime]):
    """What pretraining and finetuning share, which is all but where the weights come from."""

    version = 2
    output = "model"
    params_type = Params
    runtime_type = LaunchRuntime

    def identity(self, params: Params, runtime: LaunchRuntime) -> dict[str, Any]:
        return {"job": params.job.identity(runtime.world_size)}

    def check(self, params: Params, runtime: LaunchRuntime, facts: Mapping[str, Facts], where: str) -> None:
        try:
            params.job.check_world(runtime.world_size)
        except ConfigError as error:
            raise ConfigError(error.message, key=f"{where}.params.{error.key}", hint=error.hint) from error
        if params.job.data.type != "tokenized":
            raise ConfigError(
                f"{params.job.data.type}: the step trains on the token shards of its input",
                key=f"{where}.params.data.type",
                hint="train on a Hugging Face data set with `python -m evo_core.train`",
            )
        known, vocab = facts["data"].get("vocab_size"), params.job.model.vocab_size
        if known is not None and known > vocab:
            raise ConfigError(
                f"the tokenizer has {known} pieces, which do not fit the model's vocabulary of {vocab}",
                key=f"{where}.params.model.vocab_size",
                hint=f"set it to at least {known}",
            )

    def facts(self, params: Params, runtime: LaunchRuntime, facts: Mapping[str, Facts]) -> Facts:
        return {"vocab_size": params.job.model.vocab_size, "types": facts["data"].get("types")}

    def run(self, ctx: StepContext[Params, LaunchRuntime]) -> dict[str, Any]:
        data = ctx.inputs["data"].path
        run = _run_folder(ctx.work, ctx.attempt)
        settings = {
            "data.train_folder": str(data / "train"),
            "data.valid_folder": str(data / "valid"),
            "data.tokenizer_path": str(data / TOKENIZER),
            "ckpt.enable_save_ckpt": True,
            "ckpt.auto_resume": True,
            "ckpt.save_ckpt_folder": f"local:{ctx.work / 'ckpt'}",
            "tensorboard_folder": str(run / "tensorboard"),
        }
        replaced = [key for key in OWNED if _at(ctx.params.job, key) is not None]
        if replaced:
            ctx.say(f"set by the step in place of the file's value: {', '.join(replaced)}")
        job = run / "job.yaml"
        write_job(ctx.params.job, settings, job)
        init = ["--init", str(ctx.inputs["init"].path / MODEL)] if "init" in ctx.inputs else []
        launch(ctx, "evo_core.train", "--config", str(job), "--folder", str(run), *init)
        return _collect(ctx, run, job)


class Pretrain(_Train):
    """Trains from fresh weights, or from an earlier model given as `init`."""

    name = "train.pretrain"
    inputs: ClassVar[Mapping[str, Input]] = {"data": Input("dataset"), "init": Input("model", optional=True)}


class Finetune(Pretrain):
    """Trains on from the weights of another model."""

    name = "train.finetune"
    inputs: ClassVar[Mapping[str, Input]] = {"data": Input("dataset"), "init": Input("model")}

    def check(self, params: Params, runtime: LaunchRuntime, facts: Mapping[str, Facts], where: str) -> None:
        """As `Pretrain.check`, and the two models must have one vocabulary.

        Raises:
            ConfigError: their sizes differ.
        """
        super().check(params, runtime, facts, where)
        was, vocab = facts["init"].get("vocab_size"), params.job.model.vocab_size
        if was is not None and was != vocab:
            raise ConfigError(
                f"the model to start from has a vocabulary of {was}, this one of {vocab}",
                key=f"{where}.params.model.vocab_size",
                hint=f"set it to {was}",
            )


def _load_job(config: Path, over: dict[str, Any], context: Mapping[str, Any]) -> TrainConfig:
    """The job of a file and the blocks over it; an error in a block names its key in the pipeline.

    Where it saves is the step's business: a file that says to save need not name a folder.
    """
    from evo_core.config import load_config

    try:
        return load_config(config, ["ckpt.enable_save_ckpt=false"], blocks=over)
    except ConfigError as error:
        if error.key is None or error.key.partition(".")[0] not in over:
            raise
        key = f"{context.get('where', 'params')}.{error.key}"
        raise ConfigError(error.message, key=key, hint=error.hint) from error


def _at(job: TrainConfig, key: str) -> Any:
    value: Any = job
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _run_folder(work: Path, attempt: int) -> Path:
    """A folder only this attempt writes, begun with the curve of the attempt before it; the trainer cuts that back to
    the checkpoint it resumes from."""
    run = work / f"run-{attempt}"
    if not run.exists():
        run.mkdir(parents=True)
        earlier = sorted(work.glob("run-*/metrics.jsonl"), key=lambda p: p.stat().st_mtime)
        if earlier:
            copy_file(earlier[-1], run / METRICS)
            if (events := earlier[-1].parent / "tensorboard").is_dir():
                # Nobody reads this folder before the run writes on into it; the whole is synced when it is sealed.
                shutil.copytree(events, run / "tensorboard")
    return run


def _collect(ctx: StepContext[Params, LaunchRuntime], run: Path, job: Path) -> dict[str, Any]:
    """Put the finished model into the attempt: its last checkpoint by hard links, the curve, tensorboard, the job."""
    from evo_core.checkpoint import newest_complete

    checkpoint = newest_complete(ctx.work / "ckpt")
    if checkpoint is None:
        raise ConfigError("training ended without a checkpoint", file=ctx.work / "ckpt")
    link_tree(Path(checkpoint), ctx.folder / MODEL)
    link_or_copy(run / METRICS, ctx.folder / METRICS)
    link_or_copy(job, ctx.folder / "config.yaml")
    if (run / "tensorboard").is_dir():
        link_tree(run / "tensorboard", ctx.folder / "tensorboard")
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    last = lines[-1]
    return {
        "steps": last["step"] + 1,
        "tokens": last["num_consumed_tokens"],
        "loss": last["loss"],
        "skipped_updates": last["inf_nan_skip_batches"],
    }

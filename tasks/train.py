"""`train.pretrain` and `train.finetune`: a dataset to a model, by `evo_core.train` on the nodes of the runtime."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import ConfigDict, Field, PrivateAttr, ValidationInfo, model_validator

from evo_core.errors import ConfigError
from evo_core.storage.files import copy_file, link_or_copy, link_tree
from tasks import kind
from tasks.kind import Facts, Input, Kind, StepContext
from tasks.launch.job_file import job_file
from tasks.launch.launcher import LaunchRuntime
from tasks.launch.step import launch
from tasks.params.paths import PipelinePath
from tasks.start import check_start, found_facts, other_settings
from tasks.tokenizer import TOKENIZER

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.config.open_shape import OpenJob

MODEL = "model"
METRICS = "metrics.jsonl"
OWNED = ("data.train_folder", "data.valid_folder", "data.tokenizer_path", "ckpt.save_ckpt_folder", "tensorboard_folder")
"""Keys that the step sets: where things lie is the pipeline's business."""


class Params(kind.Params):
    """A training job: the file `config`, with any of its blocks laid over it (`adam: {lr: 3e-4}`)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    config: PipelinePath = Field(
        description="a file in configs/train/, YAML or InternEvo's .py; without the sizes of a model it trains on in "
        "the shape of `init`"
    )
    _job: TrainConfig = PrivateAttr()
    _open: OpenJob | None = PrivateAttr(None)
    _place: _Place = PrivateAttr()

    @model_validator(mode="after")
    def _load(self, info: ValidationInfo) -> Params:
        context, over = info.context or {}, self.model_extra or {}
        written = context.get("written", over)  # with references: the job's files shall hold no secret
        laid_over = {name: written[name] for name in over}
        self._place = _Place(context.get("where", "params"), frozenset(over))
        with self._place.errors():
            self._open = _read_open(self.config, laid_over) if "init" in context.get("needs", ()) else None
            self._job = _load_job(self.config, laid_over) if self._open is None else self._open.unshaped()
        return self

    @property
    def job(self) -> TrainConfig:
        """The checked training configuration; where it leaves its model's shape open, with one that stands in."""
        return self._job

    @property
    def stated(self) -> frozenset[str] | None:
        """The settings of the network that a job with an open shape states itself; None where the shape is stated."""
        return None if self._open is None else self._open.stated

    def job_on(self, network: Mapping[str, Any] | None) -> TrainConfig | None:
        """The job as it starts from weights of a network; None where it takes its shape from one that is not known.

        Raises:
            ConfigError: it does not fit that shape.
        """
        if self._open is None:
            return self._job
        if not network:
            return None
        with self._place.errors():
            return self._open.closed(network)


class _Train(Kind[Params, LaunchRuntime]):
    """What pretraining and finetuning share, which is all but where the weights come from."""

    version = 2
    output = "model"
    params_type = Params
    runtime_type = LaunchRuntime

    def identity(self, params: Params, runtime: LaunchRuntime) -> dict[str, Any]:
        job = params.job.identity(runtime.world_size)
        return {"job": job if params.stated is None else _without_shape(job, params.stated)}

    def identity_by_facts(self, params: Params, facts: Mapping[str, Facts]) -> dict[str, Any]:
        """The version of the order of many documents, where the data may have so many."""
        from evo_core.data.loader.scale import LARGE_ORDER_VERSION, SCALE

        most = facts["data"].get("most_documents")
        may_be_large = most is not None and most > SCALE.documents and params.job.data.packing == "continuous"
        return {"order": LARGE_ORDER_VERSION} if may_be_large else {}

    def check(self, params: Params, runtime: LaunchRuntime, facts: Mapping[str, Facts], where: str) -> None:
        """Refuse a job that cannot run on so many ranks, or on these data, or from these weights.

        Raises:
            ConfigError: naming the setting.
        """
        if params.job.data.type != "tokenized":
            raise ConfigError(
                f"{params.job.data.type}: the step trains on the token shards of its input",
                key=f"{where}.params.data.type",
                hint="train on a Hugging Face data set with `python -m evo_core.train`",
            )
        job = params.job_on(facts.get("init", {}).get("network"))
        try:
            (job or params.job).check_world(runtime.world_size)
        except ConfigError as error:
            raise ConfigError(error.message, key=f"{where}.params.{error.key}", hint=error.hint) from error
        if "init" in facts:
            check_start(job or params.job, facts, where, is_open=params.stated is not None)
        known, vocab = facts["data"].get("vocab_size"), None if job is None else job.model.vocab_size
        if known is not None and vocab is not None and known > vocab:
            hint = f"set it to at least {known}"
            raise ConfigError(
                f"the tokenizer has {known} pieces, which do not fit the model's vocabulary of {vocab}",
                key=f"{where}.params.model.vocab_size",
                hint="tokenize with the tokenizer of the weights" if "init" in facts else hint,
            )

    def facts(self, params: Params, runtime: LaunchRuntime, facts: Mapping[str, Facts]) -> Facts:
        from evo_core.config.open_shape import network_of

        job, data = params.job_on(facts.get("init", {}).get("network")), facts["data"]
        passed = {"types": data.get("types")} | {k: v for k, v in data.items() if k == "tokenizer"}
        if job is None:
            return passed | {k: v for k, v in facts["init"].items() if k == "vocab_size"}
        return passed | {"vocab_size": job.model.vocab_size, "network": network_of(job)}

    def run(self, ctx: StepContext[Params, LaunchRuntime]) -> dict[str, Any]:
        training = self._job(ctx)
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
        replaced = [key for key in OWNED if _at(training, key) is not None]
        if replaced:
            ctx.say(f"set by the step in place of the file's value: {', '.join(replaced)}")
        job = run / "job.yaml"
        init = ["--init", str(ctx.inputs["init"].path / MODEL)] if "init" in ctx.inputs else []
        with job_file(training, settings, job):
            launch(ctx, "evo_core.train", "--config", str(job), "--folder", str(run), *init)
        return _collect(ctx, run, job)

    def _job(self, ctx: StepContext[Params, LaunchRuntime]) -> TrainConfig:
        """The job, checked once more by what its inputs have turned out to be.

        Raises:
            ConfigError: as `check`.
        """
        if "init" not in ctx.inputs:
            return ctx.params.job
        facts = found_facts(ctx.inputs["data"].path, ctx.inputs["init"].path, shaped=ctx.params.stated is None)
        self.check(ctx.params, ctx.runtime, facts, f"steps.{ctx.name}")
        network = facts["init"].get("network", {})
        training = ctx.params.job_on(network)
        if training is None:
            where = f"steps.{ctx.name}.params.model"
            hint = "state it: a model type of your own has keys that only it knows"
            raise ConfigError("the shape of the model is missing", key=where, hint=hint)
        for difference in other_settings(training, network):
            ctx.say(difference)
        return training


class Pretrain(_Train):
    """Trains from fresh weights, or from an earlier model given as `init`."""

    name = "train.pretrain"
    inputs: ClassVar[Mapping[str, Input]] = {"data": Input("dataset"), "init": Input("model", optional=True)}


class Finetune(Pretrain):
    """Trains on from the weights of another model."""

    name = "train.finetune"
    inputs: ClassVar[Mapping[str, Input]] = {"data": Input("dataset"), "init": Input("model")}


class _Place(NamedTuple):
    """Where a job stands in a pipeline: its step's parameters, and which of its blocks are written there."""

    where: str
    blocks: frozenset[str]

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Have an error in a block that stands in the pipeline name its key there."""
        try:
            yield
        except ConfigError as error:
            if error.key is None or error.key.partition(".")[0] not in self.blocks:
                raise
            raise ConfigError(error.message, key=f"{self.where}.{error.key}", hint=error.hint) from error


_NOWHERE = ["ckpt.enable_save_ckpt=false"]
"""Where a job saves is the step's business: a file that says to save need not name a folder."""


def _load_job(config: Path, over: dict[str, Any]) -> TrainConfig:
    """The job of a file and the blocks over it."""
    from evo_core.config import load_config

    return load_config(config, _NOWHERE, blocks=over)


def _read_open(config: Path, over: dict[str, Any]) -> OpenJob | None:
    from evo_core.config.open_shape import read_open_job

    return read_open_job(config, _NOWHERE, over)


def _without_shape(job: dict[str, Any], stated: Collection[str]) -> dict[str, Any]:
    """The identity of a job without what it takes from the weights, whose key is that of an input."""
    kept = {name: value for name, value in job.items() if name not in ("model", "model_type", "use_fp32_norm", "moe")}
    kept |= {name: value for name, value in job.items() if name in stated}
    return kept | {"model": {name: value for name, value in job["model"].items() if f"model.{name}" in stated}}


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
        "made_by": _made_by(ctx.folder / MODEL),
    }


def _made_by(checkpoint: Path) -> dict[str, Any]:
    """The code, settings and dataset behind the weights, as the run itself named them: the attempt that saved last may
    have been an earlier one, of other code."""
    from evo_core.checkpoint.manifest import read_manifest

    about = read_manifest(checkpoint).about
    names = ("evo", "commit", "modified", "identity_digest", "dataset")
    return {} if about is None else {name: getattr(about, name) for name in names}

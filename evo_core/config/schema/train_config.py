"""A training job: all blocks together, with the checks between them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from evo_core.config.custom_model import is_model_type, own_model
from evo_core.config.errors import raise_all
from evo_core.config.families import SHIPPED
from evo_core.config.fields import Block, block, execution, identity, required_block, value_at
from evo_core.config.global_batch import micro_num
from evo_core.config.identity import identity_of
from evo_core.config.locations import location_errors
from evo_core.config.messages import errors_of
from evo_core.config.monitor_rules import monitor_errors
from evo_core.config.pipeline_rules import check_micro_batches, most_stages
from evo_core.config.resolve import merge
from evo_core.config.rules import rule_errors
from evo_core.config.schema.ckpt import CkptConfig
from evo_core.config.schema.data import DataConfig
from evo_core.config.schema.generation import GenerationConfig
from evo_core.config.schema.model import ModelConfig, MoeConfig
from evo_core.config.schema.monitor import MonitorConfig
from evo_core.config.schema.optim import (
    AdamConfig,
    Beta2SchedulerConfig,
    GradScalerConfig,
    HybridZeroOptimizerConfig,
    LossConfig,
    LrSchedulerConfig,
    OptimizerConfig,
)
from evo_core.config.schema.parallel import ParallelConfig
from evo_core.config.types import NonNegativeInt, OptionalLocation, describe
from evo_core.config.unsupported import refusal_errors, settings_without_effect
from evo_core.config.write import to_plain, to_yaml
from evo_core.errors import ConfigError
from evo_core.parallel.degrees import Degrees, data_parallel_size, degree_errors

INFERENCE = "inference"
"""The context of pydantic's in which a configuration is checked where no training is meant."""

SAVED = "saved"
"""The one in which that of an earlier run is, which need not tell where its alerts went."""


def _of_its_type(data: Any, shipped: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    name = info.data.get("model_type", SHIPPED[0])
    if name not in SHIPPED:
        return own_model(name, data)
    moe = info.data.get("moe", MoeConfig())
    if isinstance(data, ModelConfig):
        data = data.model_copy(update={"moe": moe})
    elif isinstance(data, dict):
        if data.get("moe") is not None:
            raise ConfigError("is a block of its own", key="model.moe", hint="state it at the top level")
        data = {**data, "moe": moe}
    model = shipped(data)
    return model.trained_on(info.data["data"].seq_len) if "data" in info.data else model


class TrainConfig(Block):
    """A training job as it is written in a YAML or ``.py`` file."""

    job_name: str = execution("AnonymousJob", "Name of the run.", validation_alias=AliasChoices("job_name", "JOB_NAME"))
    seed: NonNegativeInt = identity(1024, "Seed of weights and data order.")
    model_type: Annotated[str, AfterValidator(is_model_type)] = identity("INTERNLM", "Family of the model.")
    use_fp32_norm: bool = identity(False, "Keep the norms' weights in float32.")
    output_tf32: bool = identity(False, "Compute the head with TF32.")
    metric_dtype: Literal["fp32"] = execution("fp32", "Type of the metrics' sums.")
    cudnn_deterministic: bool = execution(False, "Only deterministic cuDNN kernels.")
    cudnn_benchmark: bool = execution(False, "Let cuDNN choose its fastest kernel by trying.")
    enable_tb: bool = execution(True, "Write tensorboard records.")
    tensorboard_folder: OptionalLocation = execution(None, "Where they go; None: below the run's folder.")
    resume_tb_folder: OptionalLocation = execution(None, "Records of an earlier run to carry on.")

    data: DataConfig = block(DataConfig, "What is trained on.")
    moe: MoeConfig = block(MoeConfig, "Routing of tokens to experts.")
    model: Annotated[ModelConfig, WrapValidator(_of_its_type)] = required_block("The network.")
    loss: LossConfig = block(LossConfig, "The training loss.")
    optimizer: OptimizerConfig = block(OptimizerConfig, "What updates the weights.")
    adam: AdamConfig = block(AdamConfig, "AdamW, and the learning rate and weight decay of any optimizer.")
    lr_scheduler: LrSchedulerConfig = block(LrSchedulerConfig, "The learning rate over time.")
    beta2_scheduler: Beta2SchedulerConfig = block(Beta2SchedulerConfig, "Adam's beta2 over time.")
    grad_scaler: GradScalerConfig = block(GradScalerConfig, "Loss scaling.")
    hybrid_zero_optimizer: HybridZeroOptimizerConfig = block(HybridZeroOptimizerConfig, "ZeRO and clipping.")
    parallel: ParallelConfig = block(ParallelConfig, "How the ranks share the work.")
    ckpt: CkptConfig = block(CkptConfig, "What is saved, and what a run starts from.")
    monitor: MonitorConfig = block(MonitorConfig, "Who is told what.")
    generation: GenerationConfig = block(GenerationConfig, "How a trained model continues prompts.")

    _environment: dict[str, tuple[str, Any]] = PrivateAttr(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Keys whose value came from the environment, with the references they were written as."""
        return {key: reference for key, (reference, value) in self._environment.items() if value_at(self, key) == value}

    @property
    def shown(self) -> Self:
        """A copy for logs, records and folders: its own settings (`job_name`) are references where the environment
        gave them."""
        return self.model_copy(
            update={key: text for key, text in self.environment.items() if key in type(self).model_fields}
        )

    @property
    def job_mark(self) -> str:
        """`job_name` as checkpoints say it of their run.

        Where the environment gave it that is the reference and a short digest of the value, which tells apart jobs that
        share a save folder and does not tell the value.
        """
        if self.shown.job_name == self.job_name:
            return self.job_name
        digest = hashlib.sha256(self.job_name.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self.shown.job_name} {digest[:12]}"

    @property
    def run_name(self) -> str:
        """`job_name` as the folder below RUN/ that a run without a folder of its own gets.

        Raises:
            ConfigError: it cannot be a folder there.
        """
        name = self.shown.job_name
        parts = PurePosixPath(name).parts
        long = any(len(part.encode("utf-8", "replace")) > 200 for part in parts)
        if not name.isprintable() or not parts or long or name.startswith("/") or ".." in parts:
            message = f"{describe(name)} cannot be the name of a folder below RUN/"
            raise ConfigError(message, key="job_name", hint="choose a name without / and .., or give --folder")
        return name

    def dp(self, world_size: int) -> int:
        """Data-parallel ranks among ``world_size``.

        Raises:
            ConfigError: the ranks cannot be laid out so.
        """
        return data_parallel_size(self.parallel, world_size)

    def degrees(self, world_size: int) -> Degrees:
        """How ``world_size`` ranks share the work.

        Raises:
            ConfigError: they cannot be laid out so.
        """
        return Degrees.of(self.parallel, world_size, self.experts)

    @property
    def experts(self) -> int:
        """Of each layer; 1 for a plain MLP, and for a model type of a user's own, whose experts are its own matter."""
        return self.model.num_experts if self.model_type in SHIPPED else 1

    def micro_num(self, dp: int) -> int:
        """Micro-batches of one update on each of ``dp`` data-parallel ranks.

        Raises:
            ConfigError: data.global_batch_tokens does not divide over so many ranks.
        """
        return micro_num(self.data, dp)

    def check_world(self, world_size: int) -> None:
        """Checks that the job can run on ``world_size`` ranks.

        Raises:
            ConfigError: naming the numbers and the nearest legal choice.
        """
        stages = most_stages(self.model)
        raise_all(degree_errors(self.parallel, world_size, most_stages=stages, experts=self.experts))
        check_micro_batches(self, self.dp(world_size))

    def identity(self, world_size: int) -> dict[str, Any]:
        """What decides the trained weights, as nested plain data: see ``evo_core.config.identity``."""
        return identity_of(self, world_size)

    def settings_without_effect(self, device_type: str) -> list[str]:
        """The settings that were set but change nothing on a ``cpu`` or ``cuda`` device, each with why."""
        return settings_without_effect(self, device_type)

    def to_plain(self) -> dict[str, Any]:
        """The data of ``to_yaml``, fit to be written: see ``evo_core.config.write``."""
        return to_plain(self)

    def to_yaml(self) -> str:
        """YAML that ``load_config`` reads back to an equal configuration."""
        return to_yaml(self)

    def __repr__(self) -> str:
        return f"TrainConfig({self.shown.job_name!r}, {self.model_type})"  # without values: some may be secrets

    __str__ = __repr__

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """A configuration from plain data, with all checks.

        Raises:
            ConfigError: one, or several together; keys are named, without file and line.
        """
        return cls.from_plain(obj, {}, **options)

    @classmethod
    def from_plain(cls, data: Any, references: Mapping[str, str], **options: Any) -> Self:
        """As ``model_validate``, where values of some keys came from the environment.

        Args:
            data: the configuration as nested plain data.
            references: dotted key to the reference it was written as, such as ``${oc.env:NAME}``.
            options: pydantic's; of contexts there are `INFERENCE` and `SAVED`.
        """
        try:
            config = super().model_validate(data, **options)
        except ValidationError as error:
            raise_all(errors_of(error, cls, references))
            raise
        for key, reference in references.items():
            config._environment[key] = (reference, value_at(config, key))
        return config

    @model_validator(mode="before")
    @classmethod
    def _take_from_neighbours(cls, data: Any) -> Any:
        """The settings whose default is another block's setting."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if isinstance(data.get("tensorboard"), dict):  # where InternEvo reads it
            data["monitor"] = merge(data.get("monitor") or {}, {"tensorboard": data.pop("tensorboard")})
        for name in ("model_type", "use_fp32_norm"):
            _follow(data, name, _stated(data, "model", name))
            _fill(data, "model", name, data.get(name))
        _fill(data, "lr_scheduler", "total_steps", _stated(data, "data", "total_steps"))
        _fill(data, "beta2_scheduler", "init_beta2", _stated(data, "adam", "adam_beta2"))
        _fill(data, "beta2_scheduler", "c", _stated(data, "adam", "adam_beta2_c"))
        return data

    @model_validator(mode="after")
    def _fits_together(self, info: ValidationInfo) -> Self:
        rules = rule_errors(self, inference=info.context == INFERENCE)
        watched = () if info.context in (INFERENCE, SAVED) else monitor_errors(self)
        raise_all([*rules, *watched, *location_errors(self), *refusal_errors(self)])
        return self


def _stated(data: dict[str, Any], block_name: str, name: str) -> Any:
    """What is stated in a block of data, be it plain or a Block already; None where nothing is."""
    owner = data.get(block_name)
    return owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)


def _follow(data: dict[str, Any], name: str, value: Any) -> None:
    if data.get(name) is None and value is not None:
        data[name] = value


def _fill(data: dict[str, Any], block_name: str, name: str, value: Any) -> None:
    owner = data.get(block_name)
    if value is not None and (owner is None or isinstance(owner, dict)) and (owner or {}).get(name) is None:
        data[block_name] = {**(owner or {}), name: value}

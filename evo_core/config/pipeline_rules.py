"""The rules of pipeline parallelism: what must fit to the stages that the layers are dealt out over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from evo_core.config.families import SHIPPED
from evo_core.config.global_batch import micro_num
from evo_core.config.schema.model import ModelConfig
from evo_core.errors import ConfigError
from evo_core.nearest import divisors, multiples, nearest

if TYPE_CHECKING:
    from evo_core.config.schema.train_config import TrainConfig

_CHUNKS = {"ZBH1": 1, "ZBV": 2}
"""Of each rank, where the schedule leaves no choice."""


def pipeline_errors(config: TrainConfig) -> Iterator[ConfigError]:
    """What keeps a job from going through ``parallel.pipeline.size`` stages, whatever the number of ranks.

    With one stage, chunks and schedule mean nothing, and are not looked at.
    """
    pipeline, model = config.parallel.pipeline, config.model
    if pipeline.size == 1:
        return
    if config.parallel.zero1.fsdp:
        yield ConfigError("fsdp needs pipeline.size 1", key="parallel.zero1.fsdp", hint="set it to false")
    if not _has_stages(model):
        yield _uncut(config.model_type, pipeline.size, "parallel.pipeline.size")
        return
    if model.compile and pipeline.mode in _CHUNKS:
        message = f"{pipeline.mode} makes the gradients of weights apart, and a compiled block makes all at once"
        yield ConfigError(message, key="model.compile", hint="set it to false, or pipeline.mode to 1F1B")
    chunks = _CHUNKS.get(pipeline.mode, model.num_chunks)
    if model.num_chunks != chunks:
        message = f"{model.num_chunks}: {pipeline.mode} has {chunks} chunk{'s' * (chunks > 1)} on each rank"
        yield ConfigError(message, key="model.num_chunks", hint=f"set it to {chunks}, or pipeline.mode to 1F1B")
        return
    if chunks == 1:
        if (error := too_few_layers(model.num_layers, pipeline.size, "parallel.pipeline.size")) is not None:
            yield error
        return
    yield from _layers_of_chunks(config)
    if (number := config.data.micro_num) is not None and number % pipeline.size:
        message = f"{_in_groups(config)}, not {number}"
        near = nearest(number, multiples(number, pipeline.size))
        yield ConfigError(message, key="data.micro_num", hint=f"nearest: {near}{_or_no_chunks(config)}")


def most_stages(model: ModelConfig | Any) -> int:
    """The longest pipeline that a model has layers for."""
    return max(model.num_layers // model.num_chunks, 1) if _has_stages(model) else 1


def check_micro_batches(config: TrainConfig, dp: int) -> None:
    """Whether a batch that is stated in tokens gives ``dp`` data-parallel ranks micro-batches that fit to the stages.

    Raises:
        ConfigError: they do not divide over the ranks, or into groups of as many as there are stages.
    """
    data, stages = config.data, config.parallel.pipeline.size
    in_groups = stages > 1 and getattr(config.model, "num_chunks", 1) > 1
    number, tokens = micro_num(data, dp, multiple_of=stages if in_groups else 1), data.global_batch_tokens
    if tokens is None or not in_groups or number % stages == 0:
        return
    near = nearest(tokens, multiples(tokens, data.packed_length * dp * stages))
    raise ConfigError(
        f"{tokens} tokens are a micro_num of {number} at data-parallel size {dp}, which {_in_groups(config)}",
        key="data.global_batch_tokens",
        hint=f"nearest: {near} tokens{_or_no_chunks(config)}",
    )


def staging_error(
    model: ModelConfig | Any, stages: int, key: str, *, among: Sequence[int] | None = None
) -> ConfigError | None:
    """What keeps the layers of a trained model from being dealt out over so many stages, which alone can be changed.

    Args:
        model: the `model` block, of any model type.
        stages: one on each rank of a pipeline.
        key: or option that asked for so many.
        among: the numbers of stages that the ranks allow; None allows all.
    """
    if stages == 1:
        return None
    if not _has_stages(model):
        return _uncut(model.model_type, stages, key)
    return too_few_layers(model.num_layers, stages, key, among)


def too_few_layers(layers: int, stages: int, key: str, among: Sequence[int] | None = None) -> ConfigError | None:
    """Every stage has a layer; or this says the nearest number of stages with which each has one."""
    if layers >= stages:
        return None
    fitting = [size for size in among or range(1, layers + 1) if size <= layers]
    message = f"{layers} layer{'s are' if layers > 1 else ' is'} too few for {stages} stages"
    return ConfigError(message, key=key, hint=f"nearest: {nearest(stages, fitting)}")


def _has_stages(model: ModelConfig | Any) -> bool:
    """Whether it is a shipped family's: the settings of a type of one's own may be those and a few more."""
    return isinstance(model, ModelConfig) and model.model_type in SHIPPED


def _uncut(name: str, stages: int, key: str) -> ConfigError:
    hint = "set it to 1; ranks can share each of its layers: docs/models.md"
    return ConfigError(f"{stages}: {name} is a model type of your own, which has no stages", key=key, hint=hint)


def _layers_of_chunks(config: TrainConfig) -> Iterator[ConfigError]:
    """Chunks have equally many layers, and each of their stages has one."""
    model, pipeline = config.model, config.parallel.pipeline
    layers, chunks, stages = model.num_layers, model.num_chunks, pipeline.size
    if layers % chunks == 0 and layers >= stages * chunks:
        return
    is_free = pipeline.mode not in _CHUNKS
    fitting = [n for n in divisors(layers) if n * stages <= layers] if is_free else []
    longest = layers // chunks if layers % chunks == 0 else 1
    choices = [f"num_chunks {nearest(chunks, fitting)}"] if fitting else []
    choices += [f"pipeline.size {longest}"] if longest > 1 else []
    if not choices:
        other = "num_chunks 1" if is_free else "pipeline.mode ZBH1 and num_chunks 1"
        choices = [f"{other} and pipeline.size {layers}" if layers < stages else other]
    if layers % chunks:
        message = f"{layers} layers do not divide into {chunks} chunks"
    else:
        message = f"{layers} layers are too few for pipeline.size {stages} x num_chunks {chunks}"
    key = "model.num_chunks" if layers % chunks or fitting else "parallel.pipeline.size"
    yield ConfigError(message, key=key, hint=f"nearest: {', or '.join(choices)}")


def _in_groups(config: TrainConfig) -> str:
    chunks, stages = config.model.num_chunks, config.parallel.pipeline.size
    return f"with num_chunks {chunks} must be a multiple of pipeline.size {stages}"


def _or_no_chunks(config: TrainConfig) -> str:
    return ", or num_chunks 1" if config.parallel.pipeline.mode not in _CHUNKS else ""

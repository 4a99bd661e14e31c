"""The rules between settings: every combination that cannot mean anything is refused with the numbers in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from evo_core.config.optimizer_rules import optimizer_errors
from evo_core.config.pipeline_rules import pipeline_errors
from evo_core.config.shape_rules import shape_errors
from evo_core.config.tensor_rules import sharing_error, tensor_errors
from evo_core.config.weight_rules import weight_errors
from evo_core.errors import ConfigError
from evo_core.nearest import multiples, nearest
from evo_core.storage.location import names_nothing

if TYPE_CHECKING:
    from evo_core.config.schema.optim import LrSchedulerConfig
    from evo_core.config.schema.train_config import TrainConfig


def rule_errors(config: TrainConfig, *, inference: bool = False) -> Iterator[ConfigError]:
    """Everything in a configuration that contradicts itself, whatever the number of ranks.

    Args:
        inference: no training is meant: of a model and the ranks that share its layers only these can be changed.
    """
    yield from shape_errors(config)
    yield from _batch(config)
    yield from _data(config)
    yield from _hugging_face_data(config)
    yield from _schedules(config)
    yield from _loss_scale(config)
    yield from _checkpoints(config)
    yield from _fsdp(config)
    if inference:
        error = sharing_error(config.model, config.parallel.tensor.size, "parallel.tensor.size")
        yield from () if error is None else (error,)
    else:
        yield from tensor_errors(config)
        yield from weight_errors(config)
        yield from optimizer_errors(config)
    yield from pipeline_errors(config)
    yield from _generation(config)


def _batch(config: TrainConfig) -> Iterator[ConfigError]:
    data = config.data
    packed, tokens = data.packed_length, data.global_batch_tokens
    if tokens is not None:
        if data.micro_num is not None:
            message = "follows from global_batch_tokens and the ranks at hand"
            yield ConfigError(message, key="data.micro_num", hint="state one of the two")
        if tokens % packed:
            yield ConfigError(
                f"{tokens} tokens are no whole number of micro-batches of seq_len {data.seq_len} x micro_bsz "
                f"{data.micro_bsz} = {packed} tokens",
                key="data.global_batch_tokens",
                hint=f"nearest: {nearest(tokens, multiples(tokens, packed))}",
            )
    rampup = data.rampup
    if rampup is None:
        return
    if data.micro_num is None:
        message = "counts micro-batches of each rank, which global_batch_tokens leaves open"
        yield ConfigError(message, key="data.rampup_batch_size", hint="state micro_num instead")
    elif rampup.start > data.micro_num:
        yield ConfigError(f"starts at {rampup.start}, above micro_num {data.micro_num}", key="data.rampup_batch_size")
    elif (data.micro_num - rampup.start) % rampup.increment:
        yield ConfigError(
            f"from {rampup.start} in steps of {rampup.increment} micro_num {data.micro_num} is not reached",
            key="data.rampup_batch_size",
            hint=f"the increment must divide {data.micro_num - rampup.start}",
        )


def _data(config: TrainConfig) -> Iterator[ConfigError]:
    data = config.data
    if data.packing == "internevo":
        key = "data.packing"
        if not data.use_packed_dataset:
            yield ConfigError("internevo orders packs, which use_packed_dataset false has none of", key=key)
        if data.type_weights is not None:
            yield ConfigError("internevo mixes types by their tokens, without type_weights", key=key)
        if data.train_folder is None:
            yield ConfigError("internevo goes file by file, and there is no data.train_folder", key=key)
    if not data.use_packed_dataset and data.pack_sample_into_one:
        yield ConfigError("has no meaning with use_packed_dataset false", key="data.pack_sample_into_one")
    if data.type_weights is not None and not any(data.type_weights.values()):
        yield ConfigError("no weight is above 0", key="data.type_weights")


def _hugging_face_data(config: TrainConfig) -> Iterator[ConfigError]:
    data = config.data
    if data.type != "hf":
        return
    if data.train_folder is None:
        message = "is required with data.type hf"
        yield ConfigError(message, key="data.train_folder", hint="name a data set's folder or hub id")
    for name, without in (("packing", "continuous"), ("type_weights", None), ("min_length_dict", {})):
        if getattr(data, name) != without:
            yield ConfigError("is for token shards, not for data.type hf", key=f"data.{name}", hint="leave it out")
    if data.pack_sample_into_one:
        yield ConfigError("must be false with data.type hf", key="data.pack_sample_into_one")
    if data.skip_batches:
        yield ConfigError("must be empty with data.type hf", key="data.skip_batches")
    if data.tokenizer_path is None:
        yield ConfigError("is required with data.type hf", key="data.tokenizer_path")


def _schedules(config: TrainConfig) -> Iterator[ConfigError]:
    rate, total = config.lr_scheduler, config.data.total_steps
    if rate.total_steps < total:
        yield ConfigError(
            f"{rate.total_steps} is less than data.total_steps {total}: the schedule would end before the run",
            key="lr_scheduler.total_steps",
            hint="leave it out to follow data.total_steps",
        )
    if rate.init_steps >= rate.total_steps > 1:
        yield ConfigError(
            f"{rate.init_steps} steps at a rate of 0 leave nothing of the {rate.total_steps} total_steps",
            key="lr_scheduler.init_steps",
            hint=f"nearest: {rate.total_steps - 1}",
        )
    elif rate.init_steps + rate.warmup_steps >= rate.total_steps > 1:
        yield ConfigError(
            f"init_steps {rate.init_steps} and a warm-up of {rate.warmup_steps} steps leave nothing of the "
            f"{rate.total_steps} total_steps",
            key="lr_scheduler.warmup_ratio",
            hint=f"at most {_share(rate.total_steps - rate.init_steps - 1, rate.total_steps)}",
        )
    elif rate.kind == "wsd":
        yield from _wsd(rate)
    if rate.kind != "constant" and rate.eta_min > config.adam.lr:
        message = f"{rate.eta_min:g} is above adam.lr {config.adam.lr:g}: the rate would rise to the end"
        yield ConfigError(message, key="lr_scheduler.eta_min", hint="state an eta_min of at most adam.lr")


def _wsd(rate: LrSchedulerConfig) -> Iterator[ConfigError]:
    key = "lr_scheduler.decay_ratio"
    left = rate.total_steps - rate.init_steps - rate.warmup_steps
    if rate.decay_ratio == 0:
        yield ConfigError("0: wsd without a decay", key=key, hint="state one above 0, or kind: constant")
    elif rate.decay_steps > left:
        yield ConfigError(
            f"a decay of {rate.decay_steps} steps does not fit behind init_steps {rate.init_steps} and a warm-up of "
            f"{rate.warmup_steps} steps into {rate.total_steps} total_steps",
            key=key,
            hint=f"at most {_share(left, rate.total_steps)}",
        )


def _share(steps: int, total: int) -> str:
    """The largest share of all steps, in six digits, that is at most so many of them."""
    return f"{math.floor(10**6 * steps / total) / 10**6:g}"


def _loss_scale(config: TrainConfig) -> Iterator[ConfigError]:
    scaler = config.grad_scaler
    initial, low, high = scaler.fp16.initial_scale, scaler.fp16.min_scale, scaler.max_scale
    if low is not None and low > initial:
        message = f"{low:g} is above initial_scale {initial:g}"
        yield ConfigError(message, key="grad_scaler.fp16.min_scale")
    if high is not None and high < initial:
        yield ConfigError(f"{high:g} is below fp16.initial_scale {initial:g}", key="grad_scaler.max_scale")


def _checkpoints(config: TrainConfig) -> Iterator[ConfigError]:
    ckpt, info = config.ckpt, config.ckpt.load_ckpt_info
    stated = "enable_save_ckpt" in ckpt.model_fields_set or ckpt.save_ckpt_folder is not None
    if ckpt.enable_save_ckpt and stated and names_nothing(ckpt.save_ckpt_folder or ""):
        message = "names no folder, and enable_save_ckpt is true: nothing would be saved"
        hint = "write local:FOLDER, or enable_save_ckpt: false"
        yield ConfigError(message, key="ckpt.save_ckpt_folder", hint=hint)
    if ckpt.kept_for_ever is not None and ckpt.kept_for_ever % ckpt.checkpoint_every:
        every = int(ckpt.checkpoint_every)
        yield ConfigError(
            f"{ckpt.keep_every} is no multiple of checkpoint_every {every}",
            key="ckpt.keep_every",
            hint=f"nearest: {nearest(ckpt.kept_for_ever, multiples(ckpt.kept_for_ever, every))}",
        )
    if info is None or (ckpt.auto_resume and "auto_resume" in ckpt.model_fields_set):
        return  # said not to be read; where auto_resume is merely its default, it was meant to be
    key = "ckpt.load_ckpt_info.content"
    if not {"model", "all"} & set(info.content):
        yield ConfigError("without the model nothing can be loaded", key=key, hint='add "model"')
    elif info.ckpt_type not in ("internevo", "internlm", "evo") and info.content != ("model",):
        message = f'of a checkpoint of type {info.ckpt_type} only ("model",) can be loaded'
        yield ConfigError(message, key=key, hint='write content: ["model"]')


def _fsdp(config: TrainConfig) -> Iterator[ConfigError]:
    if config.parallel.zero1.fsdp and config.experts > 1:
        yield ConfigError("fsdp needs num_experts 1", key="parallel.zero1.fsdp", hint="set it to false")


def _generation(config: TrainConfig) -> Iterator[ConfigError]:
    generation, vocab = config.generation, getattr(config.model, "vocab_size", math.inf)
    if not 0 < generation.top_p <= 1:
        message = f"must be above 0 and at most 1, not {generation.top_p:g}"
        yield ConfigError(message, key="generation.top_p", hint="1 takes all tokens")
    if generation.eos_id == []:
        yield ConfigError("an empty list ends no text", key="generation.eos_id", hint="leave it out")
    if generation.prompts is not None and not generation.prompts:
        yield ConfigError("is empty", key="generation.prompts")
    for name in ("bos_id", "eos_id", "pad_id"):
        value = getattr(generation, name)
        for token in value if isinstance(value, list) else [value]:
            if token is not None and token >= vocab:
                yield ConfigError(f"{token} is no id of a vocabulary of {vocab}", key=f"generation.{name}")

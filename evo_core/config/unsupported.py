"""What this version does not do yet: such a setting is refused in one sentence, or named where it has no effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from evo_core.config.families import SHIPPED
from evo_core.config.fields import is_set, value_at
from evo_core.config.schema.model import ModelConfig, MoeConfig
from evo_core.config.types import describe
from evo_core.errors import ConfigError
from evo_core.storage.location import is_remote

if TYPE_CHECKING:
    from evo_core.config.schema.train_config import TrainConfig


Test = Callable[[Any, "TrainConfig"], bool]


class Refusal(NamedTuple):
    """A setting that would really change something, but that this version cannot carry out."""

    key: str
    fine: Test
    """From the value and the configuration: whether there is nothing to refuse."""
    sentence: str
    hint: str


class Effectless(NamedTuple):
    """A setting that loads but changes nothing."""

    key: str
    holds: Callable[[TrainConfig, str], bool]
    """From the configuration and the device type: whether it has no effect there."""
    why: str


def _is(allowed: object) -> Test:
    return lambda value, config: bool(value == allowed)


def _false_or_tf32(value: bool, config: TrainConfig) -> bool:
    return not value or getattr(config.model, "dtype", None) == "torch.tf32"  # then the head is computed so anyway


def _local(value: str | None, config: TrainConfig) -> bool:
    return value is None or not is_remote(value)


def _local_or_shards(value: str | None, config: TrainConfig) -> bool:
    return config.data.type != "hf" or _local(value, config)


_NO_TF32 = "set it to false; with model.dtype: torch.tf32 the head is computed so too"
_ANOTHER = "name a local folder or a hub id, or tokenize it"
_NO_STREAM = "this version reads Hugging Face data sets from local folders and hubs only"

REFUSALS = (
    Refusal("output_tf32", _false_or_tf32, "this version computes the head in model.dtype, like the rest", _NO_TF32),
    Refusal("data.train_folder", _local_or_shards, _NO_STREAM, _ANOTHER),
    Refusal("model.is_reward", _is(False), "this version trains language models only", "set it to false"),
)


def _always(config: TrainConfig, device: str) -> bool:
    return True


def _on_cpu(config: TrainConfig, device: str) -> bool:
    return device == "cpu"


def _no_tensorboard(config: TrainConfig, device: str) -> bool:
    return not config.enable_tb


def _no_wsd(config: TrainConfig, device: str) -> bool:
    return config.lr_scheduler.kind != "wsd"


def _constant_rate(config: TrainConfig, device: str) -> bool:
    return config.lr_scheduler.kind == "constant"


def _other_beta2(config: TrainConfig, device: str) -> bool:
    return config.adam.adam_beta2 != config.beta2_scheduler.init_beta2


def _other_beta2_exponent(config: TrainConfig, device: str) -> bool:
    return config.adam.adam_beta2_c != config.beta2_scheduler.c


def _no_tensor(config: TrainConfig, device: str) -> bool:
    return config.parallel.tensor.size == 1


def _no_tensor_but_isp(config: TrainConfig, device: str) -> bool:
    return _no_tensor(config, device) and config.parallel.tensor.mode != "isp"


def _isp_of_one(config: TrainConfig, device: str) -> bool:
    return _no_tensor(config, device) and _no_weight(config, device) and config.parallel.tensor.mode == "isp"


def _cut_as_head(config: TrainConfig, device: str) -> bool:
    return config.parallel.tensor.size > 1 and getattr(config.model, "tie_word_embeddings", False)


def _no_pipeline(config: TrainConfig, device: str) -> bool:
    return config.parallel.pipeline.size == 1


def _no_chunks(config: TrainConfig, device: str) -> bool:
    return not _no_pipeline(config, device) and getattr(config.model, "num_chunks", 1) == 1


def _chunks_of_no_pipeline(config: TrainConfig, device: str) -> bool:
    return _no_pipeline(config, device) and isinstance(config.model, ModelConfig) and config.model.num_chunks > 1


def _no_weight(config: TrainConfig, device: str) -> bool:
    return config.parallel.weight.size == 1


def _nothing_to_shard(config: TrainConfig, device: str) -> bool:
    return config.parallel.zero1.fsdp and config.parallel.zero1.size == 1


def _sharded(config: TrainConfig, device: str) -> bool:
    return config.parallel.zero1.fsdp and config.parallel.zero1.size != 1


def _no_experts(config: TrainConfig, device: str) -> bool:
    return getattr(config.model, "num_experts", 1) == 1


def _no_stretching(config: TrainConfig, device: str) -> bool:
    return not getattr(config.model, "use_dynamic_ntk_rope", False)


def _has_experts(config: TrainConfig, device: str) -> bool:
    return not _no_experts(config, device)


def _own_experts(config: TrainConfig, device: str) -> bool:
    return _has_experts(config, device) and config.model_type not in SHIPPED


def _never_drops(config: TrainConfig, device: str) -> bool:
    return _has_experts(config, device) and config.model.moe_type != "GShard"


def _keeps_all(config: TrainConfig, device: str) -> bool:
    return _has_experts(config, device) and config.model.moe_type == "GShard" and not config.moe.drop_tokens


def _takes_in_order(config: TrainConfig, device: str) -> bool:
    gshard = _has_experts(config, device) and config.model.moe_type == "GShard"
    return gshard and config.moe.drop_tokens and config.moe.top_k == 2


def _random_data(config: TrainConfig, device: str) -> bool:
    return config.data.train_folder is None


def _hf_data(config: TrainConfig, device: str) -> bool:
    return config.data.type == "hf"


def _token_data(config: TrainConfig, device: str) -> bool:
    return config.data.type == "tokenized"


def _no_shm(config: TrainConfig, device: str) -> bool:
    data = config.data
    return not data.use_shm or data.train_folder is None or data.type == "hf"


def _no_saves(config: TrainConfig, device: str) -> bool:
    return not config.ckpt.enable_save_ckpt or config.ckpt.save_ckpt_folder is None


def _saves_all(config: TrainConfig, device: str) -> bool:
    return not _no_saves(config, device) and config.ckpt.keep is None


def _saves_at_no_interval(config: TrainConfig, device: str) -> bool:
    endless = config.ckpt.checkpoint_every == float("inf")
    return endless and not _no_saves(config, device) and config.ckpt.keep is not None


def _no_upload(config: TrainConfig, device: str) -> bool:
    return not (config.ckpt.async_upload and is_remote(config.ckpt.save_ckpt_folder or ""))


def _no_feishu(config: TrainConfig, device: str) -> bool:
    return not config.monitor.alert.enable_feishu_alert


def _no_alerts(config: TrainConfig, device: str) -> bool:
    return not config.monitor.alert.addresses


_ROOM = ("capacity_factor", "eval_capacity_factor", "min_capacity", "drop_tokens", "use_rts")
"""The settings of how much room an expert has."""

EFFECTLESS = (
    Effectless("lr_scheduler.eta_min", _constant_rate, "lr_scheduler.kind is constant"),
    Effectless("lr_scheduler.decay_ratio", _no_wsd, "lr_scheduler.kind is not wsd"),
    Effectless("lr_scheduler.decay_type", _no_wsd, "lr_scheduler.kind is not wsd"),
    Effectless("adam.adam_beta2", _other_beta2, "beta2_scheduler.init_beta2 goes before it"),
    Effectless("adam.adam_beta2_c", _other_beta2_exponent, "beta2_scheduler.c goes before it"),
    Effectless("hybrid_zero_optimizer.use_split_tensor_optim", _always, "tensors are split evenly anyway"),
    Effectless("data.shm_path", _no_shm, "no index is kept in shared memory"),
    Effectless("data.use_shm", _random_data, "random data has no index"),
    Effectless("data.use_shm", _hf_data, "a stream has no index"),
    Effectless("data.valid_micro_num", _no_pipeline, "pipeline.size is 1: they are evaluated one by one"),
    Effectless("resume_tb_folder", _no_tensorboard, "enable_tb is false"),
    Effectless("data.subset_name", _token_data, "it is for Hugging Face data sets"),
    Effectless("data.text_key", _token_data, "it is for Hugging Face data sets"),
    Effectless("model.use_flash_attn", _on_cpu, "there is no such kernel on a CPU"),
    Effectless("model.parallel_output", _no_tensor, "tensor.size is 1"),
    Effectless("model.embed_split_hidden", _no_tensor, "tensor.size is 1"),
    Effectless("model.embed_split_hidden", _cut_as_head, "the embedding is the head too, which is cut by vocabulary"),
    Effectless("model.num_chunks", _chunks_of_no_pipeline, "pipeline.size is 1"),
    Effectless("model.mlp_layer_fusion", _always, "w1 and w3 are kept apart"),
    Effectless("model.dropout_selective_checkpoint", _always, "blocks are recomputed as a whole"),
    Effectless("model.moe_use_residual", _no_experts, "num_experts is 1"),
    Effectless("model.moe_type", _no_experts, "num_experts is 1"),
    Effectless("model.max_position_embeddings", _no_stretching, "use_dynamic_ntk_rope is false"),
    Effectless("parallel.tensor.mode", _no_tensor_but_isp, "tensor.size is 1"),
    Effectless("parallel.tensor.mode", _isp_of_one, "tensor.size and weight.size are 1"),
    Effectless("parallel.pipeline.interleaved_overlap", _no_pipeline, "pipeline.size is 1"),
    Effectless("parallel.pipeline.interleaved_overlap", _no_chunks, "num_chunks is 1"),
    Effectless("parallel.pipeline.mode", _no_pipeline, "pipeline.size is 1"),
    Effectless("parallel.weight.overlap", _no_weight, "weight.size is 1"),
    Effectless("parallel.weight.memory_pool", _no_weight, "weight.size is 1"),
    Effectless("parallel.zero1.fsdp", _nothing_to_shard, "zero1.size is 1"),
    *(
        Effectless(f"hybrid_zero_optimizer.{name}", _sharded, "fsdp fetches and reduces part by part")
        for name in ("overlap_sync_grad", "overlap_sync_param", "reduce_bucket_size", "all_gather_size")
    ),
    Effectless("parallel.expert.size", _no_experts, "num_experts is 1"),
    Effectless("parallel.expert.size", _own_experts, "the model type is your own, with experts of its own"),
    Effectless("ckpt.keep_every", _no_saves, "nothing is saved"),
    Effectless("ckpt.keep_every", _saves_all, "without keep all checkpoints stay"),
    Effectless("ckpt.keep_every", _saves_at_no_interval, "checkpoint_every is .inf"),
    Effectless("ckpt.async_upload", _no_saves, "nothing is saved"),
    Effectless("ckpt.async_upload_tmp_folder", _no_upload, "nothing is uploaded in the background"),
    Effectless("monitor.alert.feishu_alert_address", _no_feishu, "enable_feishu_alert is false"),
    Effectless("monitor.alert.alert_file_path", _no_alerts, "no alerts are sent"),
    Effectless("monitor.alert.loss_spike", _no_alerts, "no alerts are sent"),
    Effectless("loss.moe_loss_coeff", _no_experts, "num_experts is 1"),
    Effectless("cudnn_deterministic", _on_cpu, "there is no cuDNN on a CPU"),
    Effectless("cudnn_benchmark", _on_cpu, "there is no cuDNN on a CPU"),
    *(Effectless(f"moe.{name}", _no_experts, "num_experts is 1") for name in MoeConfig.model_fields),
    *(Effectless(f"moe.{name}", _never_drops, "moe_type MegaBlock drops no token") for name in _ROOM),
    *(Effectless(f"moe.{name}", _keeps_all, "drop_tokens is false") for name in _ROOM if name != "drop_tokens"),
    Effectless("moe.use_rts", _takes_in_order, "with top_k 2 tokens are taken in order"),
    Effectless("moe.noisy_gate_policy", _never_drops, "only the GShard router has noise"),
    Effectless("moe.use_fused_gating", _has_experts, "there is one router"),
)


def refusal_errors(config: TrainConfig) -> Iterator[ConfigError]:
    """A sentence for each setting that this version cannot carry out."""
    refused: set[str] = set()
    for key, fine, sentence, hint in REFUSALS:
        if key.startswith("model.") and not isinstance(config.model, ModelConfig):
            continue  # a model type of a user's own does what it says
        value = value_at(config, key)
        if key not in refused and not fine(value, config):
            refused.add(key)
            yield ConfigError(f"{describe(value)}: {sentence}", key=key, hint=hint)


def settings_without_effect(config: TrainConfig, device_type: str) -> list[str]:
    """The settings that were set to something but change nothing in a run on such a device, each with why."""
    return [f"{key} ({why})" for key, holds, why in EFFECTLESS if _is_on(config, key) and holds(config, device_type)]


def _is_on(config: TrainConfig, key: str) -> bool:
    """Whether a setting was stated, and asks for something."""
    value = value_at(config, key)
    asks = value is not False and value not in (None, "mtp", "1F1B")  # a number 0 does: for a rate that ends there
    return asks and is_set(config, key)

"""The part of a configuration that decides which weights come out: what an artifact's key is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evo_core.config.fields import leaves, value_at

if TYPE_CHECKING:
    from evo_core.config.schema.train_config import TrainConfig

_STREAM_TOKENS = 2
"""Of how the texts of a Hugging Face data set become tokens; raised where the same texts become others."""


def identity_of(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """The identity settings as nested plain data, without those at the default they were introduced with.

    A configuration that states ``data.global_batch_tokens`` means the same on any number of ranks. One that
    states ``data.micro_num`` does not: then ``data.dp``, the data-parallel ranks, is part of the identity. It always
    is with ``data.type: hf``, and so are the names of the data set and the tokenizer.
    """
    identity: dict[str, Any] = {}
    for leaf in leaves(config):
        if leaf.mark != "identity":
            continue
        value = plain(value_at(config, leaf.key))
        if value == leaf.introduced and type(value) is type(leaf.introduced):
            continue
        if leaf.key.startswith("ckpt.load_ckpt_info.") and not config.ckpt.starts_from_load_ckpt_info:
            continue
        if leaf.key == "ckpt.load_ckpt_info.path":  # identities are written down, and so never hold a secret
            value = config.environment.get(leaf.key, value)
        put(identity, leaf.key, value)
    if config.data.global_batch_tokens is None:
        identity["data"]["dp"] = config.dp(world_size)
    else:
        del identity["data"]["micro_num"]
    if config.data.type == "hf":
        # Nothing else says which texts and tokens those are; and each rank reads a part of its own.
        identity["data"] |= {"dp": config.dp(world_size), "train_folder": config.data.train_folder}
        identity["data"] |= {"tokenizer_path": config.data.tokenizer_path, "tokens_version": _STREAM_TOKENS}
    return identity


def plain(value: Any) -> Any:
    """A setting's value as YAML and JSON know it: tuples become lists."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def put(data: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key in nested maps."""
    *blocks, name = key.split(".")
    for block in blocks:
        data = data.setdefault(block, {})
    data[name] = value

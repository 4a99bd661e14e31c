"""The part of a configuration that decides which weights come out: what an artifact's key is made of.

What data there are is not in it, nor what follows from them, such as in which order so many documents are: that is in
the digest of a run's data (`TrainData.digest`), and in a step's key by its inputs and by `Kind.identity_by_facts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evo_core.config.fields import leaves, value_at
from evo_core.config.secrets import Secrets
from evo_core.errors import ConfigError

if TYPE_CHECKING:
    from evo_core.config.schema.train_config import TrainConfig

_BY_REFERENCE = {"ckpt.load_ckpt_info.path"}
"""Identity settings that say where something lies: from the environment, the reference is what they are."""

_STREAM_TOKENS = 2
"""Of how the texts of a Hugging Face data set become tokens; raised where the same texts become others."""


def identity_of(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """The identity settings as nested plain data, without those at the default they were introduced with.

    A configuration that states ``data.global_batch_tokens`` means the same on any number of ranks. One that
    states ``data.micro_num`` does not: then ``data.dp``, the data-parallel ranks, is part of the identity. It always
    is with ``data.type: hf``, and so are the names of the data set and the tokenizer.

    Raises:
        ConfigError: an identity setting came from the environment. Identities are written down, and what comes from
            the environment may be a secret.
    """
    identity: dict[str, Any] = {}
    secrets = Secrets(config.environment)
    for leaf in leaves(config):
        if leaf.mark != "identity":
            continue
        if secrets.hold(leaf.key) and leaf.key not in _BY_REFERENCE:
            raise enters_the_key(leaf.key, secrets)
        value = plain(value_at(config, leaf.key))
        introduced = plain(leaf.introduced)
        if value == introduced and type(value) is type(introduced):
            continue
        if leaf.key.startswith("ckpt.load_ckpt_info.") and not config.ckpt.starts_from_load_ckpt_info:
            continue
        if leaf.key in _BY_REFERENCE:
            value = config.environment.get(leaf.key, value)
        put(identity, leaf.key, value)
    if config.data.global_batch_tokens is None:
        identity["data"]["dp"] = config.dp(world_size)
    else:
        del identity["data"]["micro_num"]
    if config.data.type == "hf":
        # Nothing else says which texts and tokens those are; and each rank reads a part of its own.
        folder = config.environment.get("data.train_folder", config.data.train_folder)
        tokenizer = config.environment.get("data.tokenizer_path", config.data.tokenizer_path)
        identity["data"] |= {"dp": config.dp(world_size), "train_folder": folder, "tokenizer_path": tokenizer}
        identity["data"]["tokens_version"] = _STREAM_TOKENS
    return identity


def enters_the_key(key: str, secrets: Secrets) -> ConfigError:
    """The refusal of a value from the environment at a dotted key that is part of an artifact's identity."""
    reference = next(text for at, text in secrets.references.items() if at == key or at.startswith(f"{key}."))
    return ConfigError(
        f"{reference} may be a secret, and this is part of the artifact's key, which is written down",
        key=key,
        hint="write the value in the file, or give it by --set",
    )


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

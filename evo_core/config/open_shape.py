"""A job that leaves the shape of its model open: it is that of the weights which the job starts from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evo_core.config.families import SHIPPED
from evo_core.config.fields import leaves, value_at
from evo_core.config.identity import plain, put
from evo_core.config.load import checked, read_laid_over
from evo_core.config.resolve import Document, merge
from evo_core.config.schema.model import ModelConfig
from evo_core.errors import ConfigError

if TYPE_CHECKING:
    from evo_core.config.schema.train_config import TrainConfig

SIZES = ("num_layers", "hidden_size", "num_attention_heads", "vocab_size")
"""A model block without any of them leaves the shape open."""

_TOP_LEVEL = ("model_type", "use_fp32_norm", "moe")

_OF_TRAINING = ("drop_rate", "attn_drop_rate", "embed_grad_scale", "init_type", "use_scaled_init")
"""Settings of the `model` block by which weights are trained; others say what a network of them computes."""

_LENGTH = "max_position_embeddings"
_WIDTH = "model.mlp_ratio"
_OF_THE_TENSORS = (
    "model_type",
    *(f"model.{name}" for name in (*SIZES, "num_kv_attention_heads", "head_dim", "num_experts", "moe_use_residual")),
    *(f"model.{name}" for name in ("no_bias", "qk_norm", "norm_type", "use_swiglu", "apply_post_layer_norm")),
    *("model.tie_word_embeddings", "model.is_reward", _WIDTH),
)
"""Settings that say which tensors a model has, and their shapes."""

_EVERY_DIVISOR = 2**8 * 9 * 5 * 7
_STAND_IN = {
    "model_type": "INTERNLM2_PUBLIC",
    "model": {
        "num_layers": 5040,
        "hidden_size": 2 * _EVERY_DIVISOR,
        "num_attention_heads": _EVERY_DIVISOR,
        "vocab_size": _EVERY_DIVISOR,
        "mlp_ratio": 1.0,
        "multiple_of": 1,
    },
}
"""A shape that no layout contradicts, by which all the rest of a job is checked before the true one is known."""

Network = Mapping[str, Any]
"""What describes a network: `model`, `model_type`, `use_fp32_norm` and `moe` of a configuration, as plain data."""


@dataclass(frozen=True)
class OpenJob:
    """The settings of such a job.

    Attributes:
        document: its file, with all that is laid over it.
    """

    document: Document

    @property
    def stated(self) -> frozenset[str]:
        """Dotted keys of the settings of the network that the job states all the same."""
        data = self.document.data
        block = data.get("model") or {}
        return frozenset({f"model.{name}" for name in block} | {name for name in _TOP_LEVEL if name in data})

    def closed(self, network: Network) -> TrainConfig:
        """The job with this network, but for what it states itself.

        Raises:
            ConfigError: they contradict each other, or the rest of the job does.
        """
        job = self._with(network)
        length, trained = f"model.{_LENGTH}", getattr(job.model, _LENGTH)
        if trained < job.data.seq_len and length in _compared(network) and length not in self.stated:
            # What is trained on longer texts is a model for these: Dynamic NTK begins to stretch behind them.
            job = self._with(merge(dict(network), {"model": {_LENGTH: job.data.seq_len}}))
        return job

    def _with(self, network: Network) -> TrainConfig:
        document = Document(self.document.file, merge(dict(network), self.document.data), {})
        document.places = self.document.places
        return checked(document)

    def unshaped(self) -> TrainConfig:
        """The job with a shape that stands in for the one that is not known yet.

        Raises:
            ConfigError: the rest of the job is wrong.
        """
        return self.closed(_STAND_IN)


def read_open_job(path: Path, overrides: Sequence[str], blocks: Mapping[str, Any]) -> OpenJob | None:
    """The job in a file; None where it states a size of its model, or a model type of a user's own.

    Raises:
        ConfigError: it cannot be read.
    """
    document = read_laid_over(path, overrides, blocks)
    block = document.data.get("model")
    if not (block is None or isinstance(block, dict)) or any(name in (block or {}) for name in SIZES):
        return None
    model_type = document.data.get("model_type", SHIPPED[0])
    return OpenJob(document) if model_type in SHIPPED else None


def network_of(config: TrainConfig) -> dict[str, Any]:
    """What describes the network of a configuration, in full.

    A model type of a user's own has none that another job can take over: empty.
    """
    network: dict[str, Any] = {}
    if not isinstance(config.model, ModelConfig):
        return network
    for leaf in leaves(config):
        block, _, name = leaf.key.rpartition(".")
        describes = leaf.key in _TOP_LEVEL or block.partition(".")[0] in ("model", "moe")
        if not describes or leaf.mark != "identity" or name in _OF_TRAINING or name.endswith("_init_std"):
            continue
        value = plain(value_at(config, leaf.key))
        unstated = name == _LENGTH and name not in config.model.model_fields_set  # then it follows from data.seq_len
        if value is not None and not unstated:
            put(network, leaf.key, value)
    return network


def differences(there: Network, config: TrainConfig) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value there, value here) of each setting in which a job's network is another.

    The width of the MLP, which two settings make, stands under ``model.mlp_ratio``.
    """
    ours, theirs = _compared(network_of(config)), _compared(there)
    for key in sorted(ours.keys() | theirs.keys()):
        if theirs.get(key) != ours.get(key):
            yield key, theirs.get(key), ours.get(key)


def shape_conflict(there: Network, config: TrainConfig, where: str) -> ConfigError | None:
    """The first setting by which a job's model has other tensors than the weights it starts from, as an error.

    Args:
        where: what stands before the setting's key.
    """
    found = {key: (one, other) for key, one, other in differences(there, config)}
    for key in _OF_THE_TENSORS:
        if key not in found:
            continue
        one, other = found[key]
        here = f"makes an MLP {other} wide" if key == _WIDTH else f"is {other}"
        return ConfigError(
            f"{here} here, and {one} in the weights to start from",
            key=where + key,
            hint="leave it out, and the sizes of the model block with it, to take those of the weights",
        )
    return None


def _compared(network: Network) -> dict[str, Any]:
    """A network's settings by dotted keys, with the width of the MLP for what makes it."""
    flat = dict(_flat(network))
    flat.pop("model.multiple_of", None)
    if _WIDTH in flat:
        flat[_WIDTH] = ModelConfig.model_validate(network["model"]).mlp_hidden_size
    return flat


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

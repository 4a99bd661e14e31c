"""The rules of isp: what must divide over the ranks that share each weight of a block, and what goes with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from evo_core.config.families import SHIPPED
from evo_core.config.misfits import LARGEST, Misfit, near, one_error
from evo_core.config.schema.model import ModelConfig
from evo_core.config.tensor_rules import sequence_misfits
from evo_core.errors import ConfigError
from evo_core.nearest import divisors, multiples, nearest

if TYPE_CHECKING:
    from evo_core.config.schema.train_config import TrainConfig

_NEXT = 100
"""Steps up and down in which a size is looked for that fits with all others."""


def weight_errors(config: TrainConfig) -> Iterator[ConfigError]:
    """What keeps blocks from being shared as ``tensor.mode`` isp does, by ``parallel.weight.size`` ranks.

    One number that does not fit is named by its key. Where several do not, the weight size is the mistake.
    """
    parallel, model = config.parallel, config.model
    mode, tensor, weight = parallel.tensor.mode, parallel.tensor.size, parallel.weight
    if weight.size > 1 and mode != "isp":
        message = f"weight.size {weight.size} needs tensor.mode isp, not {mode}"
        yield ConfigError(message, key="parallel.weight.size", hint="write tensor.mode isp, or set it to 1")
    if weight.size > 1 and weight.memory_pool and not weight.overlap:
        hint = "set weight.overlap to true, or memory_pool to false"
        yield ConfigError("needs weight.overlap", key="parallel.weight.memory_pool", hint=hint)
    if mode != "isp":
        return
    if parallel.zero1.fsdp:
        message = "fsdp needs another tensor.mode than isp, which splits parameters by weight.size"
        yield ConfigError(message, key="parallel.zero1.fsdp", hint="set it to false")
    if config.experts > 1 and parallel.expert.size > 1:
        message = f"{parallel.expert.size}: with tensor.mode isp every rank fetches all experts"
        hint = "leave it out, or write tensor.mode msp to send tokens to them"
        yield ConfigError(message, key="parallel.expert.size", hint=hint)
    if tensor == weight.size == 1:
        return  # all is as without isp
    if not (isinstance(model, ModelConfig) and model.model_type in SHIPPED):
        one = " with weight.size 1" if weight.size > 1 else ""
        message = f'"isp": {config.model_type} is a model type of your own, whose blocks are not known here'
        yield ConfigError(message, key="parallel.tensor.mode", hint=f"write mtp{one}: docs/models.md")
    elif weight.size > 1:
        misfits = list(_misfits(model, weight.size, tensor))
        yield from one_error(misfits, weight.size, "weight.size", lambda: _nearest_size(model, weight.size))


def _misfits(model: ModelConfig, size: int, tensor: int) -> Iterator[Misfit]:
    """The outputs of a block's layers that do not divide over `size` ranks.

    Args:
        tensor: ranks that share the sequence, over which what is proposed divides too.
    """
    hidden, width = model.hidden_size, model.mlp_hidden_size
    if hidden % size:
        sentence = f"{hidden} does not divide over weight.size {size}"
        yield Misfit("model.hidden_size", f"hidden_size {hidden}", sentence, _other_hidden(model, size, tensor))
    if not _follows(model) or hidden % size == 0:  # else the heads are as wrong as hidden_size, and right with it
        yield from _attention(model, size, tensor)
    if width % size:
        sentence = f"the MLP is {width} wide, which does not divide over weight.size {size}"
        choice = near(model.multiple_of, multiples(model.multiple_of, size))
        yield Misfit("model.multiple_of", f"an MLP {width} wide", sentence, choice)


def _attention(model: ModelConfig, size: int, tensor: int) -> Iterator[Misfit]:
    wrong = [f"{rows} rows of {what}" for what, rows in _projections(model).items() if rows % size]
    if not wrong:
        return
    name = " and ".join(wrong)
    sentence = f"{name} do not divide over weight.size {size}"
    heads, kv_heads, width = model.num_attention_heads, model.num_kv_attention_heads, model.head_dim
    if _follows(model):
        candidates = divisors(heads) if heads <= LARGEST else []
        legal = [n for n in candidates if _fits(model, size, tensor, num_kv_attention_heads=n)]
        yield Misfit("model.num_kv_attention_heads", name, sentence, near(kv_heads, legal))
    else:
        legal = [n for n in _around(width, 2) if _fits(model, size, tensor, head_dim=n)]
        yield Misfit("model.head_dim", name, sentence, near(width, legal))


def _projections(model: ModelConfig) -> dict[str, int]:
    """The outputs of each weight that makes queries, keys and values."""
    from evo_core.model.families import FAMILIES

    queries, keys = (n * model.head_dim for n in (model.num_attention_heads, model.num_kv_attention_heads))
    if FAMILIES[model.model_type].qkv == "split":
        return {"queries": queries, "keys and of values": keys}
    return {"queries, keys and values together": queries + 2 * keys}


def _other_hidden(model: ModelConfig, size: int, tensor: int) -> str:
    """The sizes next to it with which all of the model divides."""
    heads, follows = model.num_attention_heads, _follows(model)
    step = math.lcm(size, 2 * heads) if follows else size
    legal = [
        n
        for n in _around(model.hidden_size, step)
        if _fits(model, size, tensor, hidden_size=n, **({"head_dim": n // heads} if follows else {}))
    ]
    return near(model.hidden_size, legal)


def _fits(model: ModelConfig, size: int, tensor: int, **changes: Any) -> bool:
    other = model.model_copy(update=changes)
    return not any(rows % size for rows in _rows(other)) and not any(sequence_misfits(other, tensor))


def _rows(model: ModelConfig) -> list[int]:
    """The outputs of each layer of a block, experts among them."""
    return [model.hidden_size, model.mlp_hidden_size, *_projections(model).values()]


def _follows(model: ModelConfig) -> bool:
    """Whether heads are as wide as hidden_size makes them."""
    return model.head_dim * model.num_attention_heads == model.hidden_size


def _around(value: int, step: int) -> list[int]:
    nearby = range(value // step - _NEXT, value // step + _NEXT + 1)
    return [n * step for n in nearby if n > 0]


def _nearest_size(model: ModelConfig, size: int) -> str:
    common = math.gcd(*_rows(model))
    return nearest(size, [n for n in range(1, min(common, LARGEST) + 1) if common % n == 0])

"""The rules of tensor parallelism: what must divide over the ranks that share each layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from evo_core.config.misfits import LARGEST, Misfit, cannot_share, near, one_error
from evo_core.config.schema.model import ModelConfig
from evo_core.errors import ConfigError
from evo_core.nearest import multiples, nearest

if TYPE_CHECKING:
    from evo_core.config.schema.train_config import TrainConfig


def tensor_errors(config: TrainConfig) -> Iterator[ConfigError]:
    """What keeps the layers, or with isp the sequence, from being shared by ``parallel.tensor.size`` ranks.

    One number that does not fit is named by its key. Where several do not, the tensor size is the mistake.
    """
    size, model = config.parallel.tensor.size, config.model
    if size == 1:
        return
    if not isinstance(model, ModelConfig):
        if config.parallel.tensor.mode != "isp":  # which a type of a user's own has nothing of: weight_rules
            yield from _own_type(config)
        return
    if model.attn_drop_rate > 0:
        yield ConfigError(
            f"{model.attn_drop_rate:g}: attention weights are dropped inside the kernel, by the heads at hand, so with "
            f"tensor.size {size} others would be dropped than in one process",
            key="model.attn_drop_rate",
            hint="set it to 0, or tensor.size to 1",
        )
    yield from one_error(list(_misfits(config, size)), size, "tensor.size", lambda: _nearest_size(config))


def sharing_error(model: ModelConfig | Any, size: int, key: str) -> ConfigError | None:
    """What keeps the layers of a trained model from being shared by ``size`` ranks, which alone can be changed.

    Args:
        model: the `model` block, of any model type.
        key: or option that asked for so many ranks.
    """
    if size == 1:
        return None
    if not isinstance(model, ModelConfig):
        return _uncut(model.model_type, size, key)
    misfits = list(_of_model(model, size))
    sizes = _sizes(model, lambda n: not any(_of_model(model, n)))
    return cannot_share(misfits, size, nearest(size, sizes), key) if misfits else None


def _misfits(config: TrainConfig, size: int) -> Iterator[Misfit]:
    yield from (
        sequence_misfits(config.model, size) if config.parallel.tensor.mode == "isp" else _of_model(config.model, size)
    )
    yield from _sequence(config, size)


def _of_model(model: ModelConfig, size: int) -> Iterator[Misfit]:
    yield from _vocabulary(model, size)
    yield from _heads(model, size)
    yield from _mlp(model, size)
    yield from _embedding(model, size)


def sequence_misfits(model: ModelConfig, size: int) -> Iterator[Misfit]:
    """What of a model does not divide over ranks that share the sequence, as isp has them: each does some heads, and
    has a part of embedding and head. An MLP is done whole."""
    yield from _vocabulary(model, size)
    yield from _heads(model, size)
    yield from _embedding(model, size)


def _vocabulary(model: ModelConfig, size: int) -> Iterator[Misfit]:
    vocab = model.vocab_size
    if vocab % size:
        sentence = f"{vocab} does not divide over tensor.size {size}"
        yield Misfit("model.vocab_size", f"vocab_size {vocab}", sentence, near(vocab, multiples(vocab, size)))


def _heads(model: ModelConfig, size: int) -> Iterator[Misfit]:
    """Heads are dealt out; where there are fewer key and value heads than ranks, each of these is on several."""
    heads, kv_heads = model.num_attention_heads, model.num_kv_attention_heads
    if heads % size:
        key, sentence = "model.num_attention_heads", f"{heads} does not divide over tensor.size {size}"
        yield Misfit(key, f"num_attention_heads {heads}", sentence, near(heads, _fitting_heads(model, size)))
    elif not _divides(kv_heads, size):
        key = "model.num_kv_attention_heads"
        legal = [n for n in range(1, min(heads, LARGEST) + 1) if heads % n == 0 and _divides(n, size)]
        sentence = f"{kv_heads} does not divide over tensor.size {size}, nor tensor.size by it"
        yield Misfit(key, f"num_kv_attention_heads {kv_heads}", sentence, near(kv_heads, legal))


def _divides(kv_heads: int, size: int) -> bool:
    return kv_heads % size == 0 or size % kv_heads == 0


def _fitting_heads(model: ModelConfig, size: int) -> list[int]:
    """Numbers of query heads that fit to the rest of the model and to so many ranks."""
    heads, hidden, kv_heads = model.num_attention_heads, model.hidden_size, model.num_kv_attention_heads
    follows = model.head_dim * heads == hidden
    return [
        n
        for n in range(size, min(2 * heads + size, LARGEST), size)
        if (n % kv_heads == 0 or kv_heads == heads) and not (follows and (hidden % n or hidden // n % 2))
    ]


def _mlp(model: ModelConfig, size: int) -> Iterator[Misfit]:
    width = model.mlp_hidden_size
    if width % size:
        sentence = f"the MLP is {width} wide, which does not divide over tensor.size {size}"
        choice = near(model.multiple_of, multiples(model.multiple_of, size))
        yield Misfit("model.multiple_of", f"an MLP {width} wide", sentence, choice)


def _embedding(model: ModelConfig, size: int) -> Iterator[Misfit]:
    hidden = model.hidden_size
    if model.embed_split_hidden and not model.tie_word_embeddings and hidden % size:
        sentence = f"hidden_size {hidden} does not divide over tensor.size {size}"
        yield Misfit("model.embed_split_hidden", f"hidden_size {hidden}", sentence, "set it to false")


def _sequence(config: TrainConfig, size: int) -> Iterator[Misfit]:
    """Between the layers msp, fsp and isp leave each rank a part of the micro-batch's tokens."""
    data, mode = config.data, config.parallel.tensor.mode
    packed = data.packed_length
    if mode == "mtp" or packed % size == 0:
        return
    choice = near(data.seq_len, multiples(data.seq_len, size // math.gcd(size, data.micro_bsz)))
    if mode != "isp":
        choice += ", or tensor.mode mtp"
    tokens = f"seq_len {data.seq_len} x micro_bsz {data.micro_bsz} = {packed} tokens"
    sentence = f"micro-batches of {tokens} do not divide over tensor.size {size}, as {mode} needs"
    yield Misfit("data.seq_len", f"micro-batches of {packed} tokens", sentence, choice)


def _nearest_size(config: TrainConfig) -> str:
    sizes = _sizes(config.model, lambda n: not any(_misfits(config, n)))
    return nearest(config.parallel.tensor.size, sizes)


def _sizes(model: ModelConfig, fit: Callable[[int], bool]) -> list[int]:
    heads = model.num_attention_heads
    return [n for n in range(1, min(heads, LARGEST) + 1) if heads % n == 0 and fit(n)]


def _own_type(config: TrainConfig) -> Iterator[ConfigError]:
    """A model type of a user's own is cut by its class, which sees the whole sequence on every rank."""
    tensor, name = config.parallel.tensor, config.model_type
    if (error := _uncut(name, tensor.size, "parallel.tensor.size")) is not None:
        yield error
    elif tensor.mode != "mtp":
        message = f'"{tensor.mode}": {name} is given the whole sequence on every rank'
        yield ConfigError(message, key="parallel.tensor.mode", hint="write mtp")


def _uncut(name: str, size: int, key: str) -> ConfigError | None:
    """A model type whose class knows of no ranks that share a layer."""
    from evo_core.model.registry import model_type

    if callable(getattr(model_type(name).load_builder(), "parallelize", None)):
        return None
    message = f"{size}: the class of {name} does not say how it is cut"
    return ConfigError(message, key=key, hint="set it to 1, or give the class a method parallelize: docs/models.md")

"""From the batch of an update to the micro-batches of each rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evo_core.errors import ConfigError
from evo_core.nearest import divisors, multiples, nearest

if TYPE_CHECKING:
    from evo_core.config.schema.data import DataConfig


def micro_num(data: DataConfig, dp: int, *, multiple_of: int = 1) -> int:
    """Micro-batches of one update on each of ``dp`` data-parallel ranks.

    Args:
        multiple_of: what is proposed where they do not divide is also a multiple of this.

    Raises:
        ConfigError: data.global_batch_tokens does not divide over so many ranks.
    """
    if data.micro_num is not None:
        return data.micro_num
    tokens = data.global_batch_tokens or 0
    packs = tokens // data.packed_length
    if packs % dp == 0:
        return packs // dp
    sizes = nearest(dp, [size for size in divisors(packs) if packs // size % multiple_of == 0])
    choices = [f"data-parallel size {sizes}"] if sizes else []
    choices.append(f"{nearest(tokens, multiples(tokens, data.packed_length * dp * multiple_of))} tokens")
    raise ConfigError(
        f"{tokens} tokens are {packs} micro-batches of {data.packed_length} tokens: they do not divide over {dp} "
        "data-parallel ranks",
        key="data.global_batch_tokens",
        hint=f"nearest: {', or '.join(choices)}",
    )

"""Whether ranks can be laid out as asked, by arithmetic alone; a refusal names the nearest legal choice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evo_core.errors import ConfigError

if TYPE_CHECKING:
    from evo_core.config.schema.data import DataConfig
    from evo_core.config.schema.parallel import ParallelConfig


def nearest(wanted: int, legal: list[int]) -> str:
    """The legal numbers next to a wanted one: ``"2 or 4"``; ``""`` where there are none."""
    below = [number for number in legal if number < wanted]
    above = [number for number in legal if number > wanted]
    near = ([max(below)] if below else []) + ([min(above)] if above else [])
    return " or ".join(map(str, near))


def divisors(number: int) -> list[int]:
    """The divisors of a positive number, ascending."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def data_parallel_size(parallel: ParallelConfig, world_size: int) -> int:
    """Data-parallel ranks = ranks / pipeline size / tensor size.

    Raises:
        ConfigError: that is no whole number.
    """
    for error in layout_errors(parallel, world_size):
        if error.key != "parallel.zero1.size":
            raise error
    return world_size // (parallel.pipeline.size * parallel.tensor.size)


def layout_errors(parallel: ParallelConfig, world_size: int) -> Iterator[ConfigError]:
    """What does not fit in a layout of ``world_size`` ranks."""
    tensor, pipeline, weight = parallel.tensor.size, parallel.pipeline.size, parallel.weight.size
    for name, size in (("tensor", tensor), ("weight", weight)):
        if world_size % (pipeline * size):
            legal = [d for d in divisors(world_size) if (world_size // d) % pipeline == 0]
            choices = [f"{name}.size {near}"] if (near := nearest(size, legal)) else []
            multiple = pipeline * size
            ranks = nearest(world_size, [n * multiple for n in range(1, world_size // multiple + 2)])
            yield ConfigError(
                f"{world_size} ranks do not divide into pipeline.size {pipeline} x {name}.size {size}",
                key=f"parallel.{name}.size" if size > 1 else "parallel.pipeline.size",
                hint="nearest: " + ", or ".join([*choices, f"{ranks} ranks"]),
            )
            return
    isp = parallel.tensor.mode == "isp"
    group = world_size // (pipeline * (weight if isp else tensor))
    zero1 = parallel.zero1.size
    if zero1 > 0 and group % zero1:
        divided = f"weight {weight}" if isp else f"tensor {tensor}"
        yield ConfigError(
            f"{zero1} does not divide the {group} data-parallel ranks "
            f"({world_size} ranks / pipeline {pipeline} / {divided})",
            key="parallel.zero1.size",
            hint=f"nearest: {nearest(zero1, divisors(group))}; -1 takes all",
        )


def micro_num(data: DataConfig, dp: int) -> int:
    """Micro-batches of one update on each of ``dp`` data-parallel ranks.

    Raises:
        ConfigError: data.global_batch_tokens does not divide over so many ranks.
    """
    if data.micro_num is not None:
        return data.micro_num
    tokens = data.global_batch_tokens or 0
    packs = tokens // data.packed_length
    if packs % dp == 0:
        return packs // dp
    share = data.packed_length * dp
    batches = nearest(tokens, [tokens // share * share, (tokens // share + 1) * share])
    raise ConfigError(
        f"{tokens} tokens are {packs} micro-batches of {data.packed_length} tokens: they do not divide over {dp} "
        "data-parallel ranks",
        key="data.global_batch_tokens",
        hint=f"nearest: {nearest(dp, divisors(packs))} ranks, or {batches.removeprefix('0 or ')} tokens",
    )

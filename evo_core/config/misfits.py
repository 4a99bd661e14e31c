"""Numbers that do not divide over ranks, told as one error with the nearest legal choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from evo_core.errors import ConfigError
from evo_core.nearest import nearest

LARGEST = 10_000
"""Heads and sizes that are proposed, at most: numbers beyond are slips of the hand."""


class Misfit(NamedTuple):
    """Something that cannot be cut into so many parts.

    Attributes:
        key: what to change, if not the number of ranks.
        name: it, with its number.
        sentence: what is wrong with it.
        choice: how to write the key instead; "" where no value of it would do.
    """

    key: str
    name: str
    sentence: str
    choice: str


def one_error(misfits: list[Misfit], size: int, setting: str, sizes: Callable[[], str]) -> Iterator[ConfigError]:
    """The error of what does not divide over ``parallel.<setting>`` ranks.

    One number that does not is named by its key. Where several do not, the number of ranks is the mistake.

    Args:
        setting: "tensor.size" or "weight.size".
        sizes: gives the nearest numbers of ranks over which all divides.
    """
    if len(misfits) == 1:
        (misfit,) = misfits
        own = f"{misfit.choice}, or" if misfit.choice else "nearest:"
        yield ConfigError(misfit.sentence, key=misfit.key, hint=f"{own} {setting} {sizes()}")
    elif misfits:
        yield cannot_share(misfits, size, sizes(), f"parallel.{setting}")


def cannot_share(misfits: list[Misfit], size: int, sizes: str, key: str) -> ConfigError:
    """Of several numbers, where the number of ranks is to be changed.

    Args:
        sizes: the nearest legal ones.
        key: or option that asked for so many.
    """
    names = ", ".join(misfit.name for misfit in misfits)
    return ConfigError(f"{size} ranks cannot share {names}", key=key, hint=f"nearest: {sizes}")


def near(value: int, legal: list[int]) -> str:
    """The legal values next to one, as a hint begins; "" where there are none."""
    return f"nearest: {found}" if (found := nearest(value, legal)) else ""

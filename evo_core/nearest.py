"""The legal numbers next to one that does not fit, for what a refusal proposes."""

from __future__ import annotations


def nearest(wanted: int, legal: list[int]) -> str:
    """The legal numbers next to a wanted one: ``"2 or 4"``; ``""`` where there are none."""
    below = [number for number in legal if number < wanted]
    above = [number for number in legal if number > wanted]
    near = ([max(below)] if below else []) + ([min(above)] if above else [])
    return " or ".join(map(str, near))


def divisors(number: int) -> list[int]:
    """The divisors of a positive number, ascending."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def multiples(number: int, of: int) -> list[int]:
    """The positive multiples of a number that are next to another one."""
    return [multiple for multiple in (number // of * of, (number // of + 1) * of) if multiple]

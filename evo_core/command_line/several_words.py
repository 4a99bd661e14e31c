"""Options that take several words after one name, where the library takes one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def name_before_each(words: Sequence[str], option: str) -> Iterator[str]:
    """``--x a b`` as ``--x a --x b``."""
    taken = -1  # words taken after the option's name; -1 where the word is not its own
    for word in words:
        own = taken >= 0 and not word.startswith("-")
        if own and taken > 0:
            yield option
        yield word
        taken = taken + 1 if own else 0 if word == option else -1

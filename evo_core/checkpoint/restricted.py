"""Pickles of others, of which nothing is run: they may name what is on a list and no more."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import IO, Any


class RestrictedUnpickler(pickle.Unpickler):
    """Knows only the given names.

    What a name stands for should have no attributes that a pickle could set to a use: a type of Python's own, or a
    class with a ``__setstate__``.

    Args:
        names: (module, name) to what it stands for.
    """

    def __init__(self, stream: IO[bytes], names: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(stream)
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[module, name]
        except KeyError:
            message = f"it names {module}.{name}, which has no place there: it may be code, and was not run"
            raise pickle.UnpicklingError(message) from None

"""The ids of many token files, each mapped into memory when a document of it is first asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evo_core.data.corpus.token_cache import map_cached, open_cached
from evo_core.storage.cache import mark_in_use

_MOST = 30_000
"""Files mapped at a time: the kernel allows a process 65,530 mappings (vm.max_map_count), and others need some."""


class MappedIds:
    """The ids of files by number, int32 [tokens]; several threads may ask.

    Args:
        paths: the ``.bin`` files.
        cached: their files in the token cache.
    """

    def __init__(self, paths: Sequence[Path], cached: Sequence[Path]) -> None:
        self._paths, self._cached = paths, cached
        self._held: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, file: int) -> np.ndarray:
        found = self._held.get(file)
        return self._map(file) if found is None else found

    def _map(self, file: int) -> np.ndarray:
        try:
            ids = map_cached(self._cached[file]).ids
        except OSError:  # somebody emptied the cache meanwhile
            ids = open_cached(self._paths[file]).ids
        with self._lock:
            self._held[file] = ids
            if len(self._held) > _MOST:
                self._held.popitem(last=False)
        return ids


def is_cached(cached: Path, size: int) -> bool:
    """Whether a file of the token cache is there with that size; if so, it is not pruned for a month."""
    mark_in_use(cached)
    try:
        return cached.stat().st_size == size
    except OSError:
        return False

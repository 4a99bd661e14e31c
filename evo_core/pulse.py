"""Signs of progress, for whoever watches that there is some: a step, a batch of an evaluation, a part of a file.

Whoever makes progress says so with `beat`, which costs nothing where nobody watches. What threads beside the training
do is no progress of the training: a checkpoint that is written in the background must not hide a step that hangs. It
counts only while the training waits for it. The training is in the main thread, unless another says that it is there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_training = threading.main_thread()
_main = 0
_beside = 0
_waits = False


def count_this_thread() -> None:
    """From now on what this thread does is the progress, and what others do is done beside it."""
    global _training
    _training = threading.current_thread()


def beat() -> None:
    """Something was done."""
    global _main, _beside
    if threading.current_thread() is _training:
        _main += 1
    else:
        _beside += 1


def beats() -> tuple[int, int]:
    """What was done so far, as something to compare with what it was before: it changes with every sign that counts."""
    return _main, _beside if _waits else 0


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """A block in which the training waits for a thread, whose signs count as long."""
    global _waits
    _waits = True
    try:
        yield
    finally:
        _waits = False

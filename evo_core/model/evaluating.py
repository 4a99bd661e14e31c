"""A model in evaluation mode for as long as it is asked, not trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without dropout, for the block; then in the mode it was in, errors or not."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)

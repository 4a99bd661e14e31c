"""Generation: a trained model continues prompts.

    generate(model, tokenizer, ["Once upon a time"], max_new_tokens=50)
    stream(model, tokenizer, "Once upon a time")            the text of one prompt, piece by piece
    python -m evo_core.generate --config X      the `generation` block of a configuration, on one or many ranks

Importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evo_core.generate.continuation import Generation, generate
    from evo_core.generate.sampling import Sampling
    from evo_core.generate.streaming import stream

_HOME = {"generate": "continuation", "Generation": "continuation", "Sampling": "sampling", "stream": "streaming"}

__all__ = ["Generation", "Sampling", "generate", "stream"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

"""Training: `train(cfg)` runs a job; ``python -m evo_core.train --config FILE`` is the same as a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evo_core.train.loop import TrainResult, train

__all__ = ["TrainResult", "train"]


def __getattr__(name: str) -> Any:
    """Import torch only when training is asked for: the command reads its configuration first."""
    if name in __all__:
        from evo_core.train import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

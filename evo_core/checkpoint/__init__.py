"""Checkpoints: folders written once, complete only with a manifest, read back at any number of ranks.

A checkpoint folder holds ``model/`` and ``optimizer/`` (each a `torch.distributed.checkpoint`), ``config.yaml`` (the
resolved configuration), ``tokenizer/`` (where the run names one), ``train_state.json``, ``run.json`` and, written last,
``manifest.json`` with a digest of every file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evo_core.checkpoint.folder import newest_complete
from evo_core.checkpoint.loading import Candidates, load, verify
from evo_core.checkpoint.saving import save
from evo_core.checkpoint.train_state import TrainState

if TYPE_CHECKING:
    from evo_core.weights.loading import load_model

__all__ = [
    "Candidates",
    "TrainState",
    "load",
    "load_model",
    "newest_complete",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name != "load_model":  # weights of any format: they stand on this room, which gives their reader on
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from evo_core.weights.loading import load_model

    return load_model

"""Checkpoints: folders written once, complete only with a manifest, read back at any number of ranks.

A checkpoint folder holds ``model/`` and ``optimizer/`` (each a `torch.distributed.checkpoint`), ``config.yaml`` (the
resolved configuration), ``tokenizer/`` (where the run names one), ``train_state.json``, ``run.json`` and, written last,
``manifest.json`` with a digest of every file.
"""

from evo_core.checkpoint.folder import newest_complete
from evo_core.checkpoint.loading import load, load_model, newest_sound, read_config, trained_for, verify
from evo_core.checkpoint.saving import save
from evo_core.checkpoint.train_state import TrainState

__all__ = [
    "TrainState",
    "load",
    "load_model",
    "newest_complete",
    "newest_sound",
    "read_config",
    "save",
    "trained_for",
    "verify",
]

"""What a model draws while it trains: a function of the seed, the step and the micro-batch."""

from __future__ import annotations

import hashlib

import torch


def seed_micro_batch(seed: int, step: int, number: int) -> None:
    """Make whatever a model draws in a micro-batch (dropout, the choices of a router) a function of its place.

    So there is no random state to keep: a resumed run draws what the uninterrupted one would have drawn, and another
    number of ranks draws the same for the same tokens.

    Args:
        number: of the micro-batch among those of the step, over all ranks.
    """
    digest = hashlib.sha256(f"{seed}:{step}:{number}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))

"""What a model draws while it trains: a function of the seed, the step and the micro-batch."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from evo_core.model.decoder import Decoder
from evo_core.model.draws import Draws


def draws_of_micro_batch(model: nn.Module, seed: int, step: int, number: int, tokens: int) -> dict[str, Draws]:
    """What the forward pass of a micro-batch is given to draw from (dropout, the choices of a router).

    A shipped family takes `draws`. A model type of one's own takes nothing more, and finds torch's generators seeded.

    Args:
        number: of the micro-batch among those of the step, over all ranks.
        tokens: T of its sequence, of which the model may hold a part here.

    Returns:
        Arguments by name.
    """
    if isinstance(model, Decoder):
        part, parts = model.rows
        return {"draws": Draws(seed, step, number, start=part * tokens // parts, tokens=tokens if parts > 1 else None)}
    seed_micro_batch(seed, step, number)
    return {}


def seed_micro_batch(seed: int, step: int, number: int) -> None:
    """Make what a model draws from torch's own generators in a micro-batch a function of its place.

    So there is no random state to keep: a resumed run draws what the uninterrupted one would have drawn, and another
    number of ranks draws the same for the same tokens.

    Args:
        number: of the micro-batch among those of the step, over all ranks.
    """
    digest = hashlib.sha256(f"{seed}:{step}:{number}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))

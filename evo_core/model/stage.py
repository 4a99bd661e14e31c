"""A stage: the part of a decoder that one process of a pipeline holds. How it is cut out is in cutting.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Which part of a decoder.

    Attributes:
        blocks: their numbers in the whole model.
        has_embedding: it takes token ids; else the hidden states of the stage before.
        has_head: it gives loss or logits; else hidden states. The norm before the head goes with it.
    """

    blocks: range
    has_embedding: bool
    has_head: bool

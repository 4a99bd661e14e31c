"""A stage: a run of a decoder's blocks that one process of a pipeline computes at a time.

How a decoder is cut to the stages of one process is in cutting.py; which process has which, in parallel/pipeline.
"""

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

    def recomputed(self, fraction: float) -> range:
        """Its first blocks, so many of them as a fraction says, that keep only their input and run again in the
        backward pass."""
        return self.blocks[: int(len(self.blocks) * fraction)]

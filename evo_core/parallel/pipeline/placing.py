"""Which stages a model is cut into, and which rank of the pipeline has which. There is no torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evo_core.model.stage import Stage

if TYPE_CHECKING:
    from evo_core.config import TrainConfig


@dataclass(frozen=True)
class Placing:
    """Stages over the ranks of a pipeline; every rank has as many.

    Attributes:
        ranks: of the pipeline.
        chunks: stages on each.
        is_v: the stages go down the ranks and come up again (ZBV, two chunks), so that the first rank has the first and
            the last stage; else they begin anew at the first rank after the last.
    """

    ranks: int
    chunks: int = 1
    is_v: bool = False

    @property
    def stages(self) -> int:
        """All of them."""
        return self.ranks * self.chunks

    def rank_of(self, stage: int) -> int:
        """The rank that has a stage."""
        chunk, place = divmod(stage, self.ranks)
        return self.ranks - 1 - place if self.is_v and chunk % 2 else place

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stages of a rank, by their numbers, ascending."""
        return tuple(stage for stage in range(self.stages) if self.rank_of(stage) == rank)

    def cut(self, layers: int) -> tuple[Stage, ...]:
        """All stages of a model with so many blocks.

        Chunks have equally many blocks; of each the last stages have one more where they do not divide by the ranks, as
        in InternEvo: the first ones hold more micro-batches at a time.

        Args:
            layers: a multiple of `chunks` with a block for every stage.
        """
        each, first, stages = layers // self.chunks, 0, []
        for number in range(self.stages):
            place = number % self.ranks
            count = each // self.ranks + (place >= self.ranks - each % self.ranks)
            stages.append(Stage(range(first, first + count), number == 0, number == self.stages - 1))
            first += count
        return tuple(stages)


def placing_of(cfg: TrainConfig) -> Placing:
    """Where a job has its stages."""
    said = cfg.parallel.pipeline
    return Placing(said.size, getattr(cfg.model, "num_chunks", 1), is_v=said.mode == "ZBV")

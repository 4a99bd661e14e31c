"""The batches of a run as its loop takes them: all ranks read the same data, and what one cannot read ends them all.

Every rank reads for itself (of those that share each layer the first one). One that raised alone in the middle of a run
would leave the others waiting for its gradients or, over the stages of a pipeline, for its hidden states. So it goes
through the step with a batch without targets, and its error travels with the sums of the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evo_core.data import Batch
from evo_core.data.loader.train_data import batch_size
from evo_core.errors import DataError
from evo_core.parallel.collectives import failing_together, gather_objects
from evo_core.parallel.one_job import ranks_in_words

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.data import Prefetch
    from evo_core.data.loader.prefetch import BatchSource
    from evo_core.parallel.mesh import Mesh


class Reading:
    """Takes the batches of consecutive steps; every rank does.

    Attributes:
        unread: why this rank, or the one that reads for it, could not read the last batch; None where it could.
    """

    def __init__(self, cfg: TrainConfig, mesh: Mesh, batches: Prefetch) -> None:
        self._cfg, self._mesh, self._batches = cfg, mesh, batches
        self.unread: Exception | None = None

    def batch(self, step: int) -> Batch:
        """This rank's batch of the next step; one without targets where it cannot be read, and there are other ranks.

        Raises:
            UserError: the data are wrong, and this rank is the only one.
        """
        try:
            return self._batches.batch(step)
        except Exception as error:
            if self._mesh.world.size == 1:
                raise
            self.unread = error
            data, dp = self._cfg.data, self._mesh.data.size
            return Batch.without_targets(batch_size(self._cfg, dp).at(step) // dp, data.packed_length, data.seq_len)


def raise_unread(error: Exception | None) -> None:
    """End every rank with the error of the first that has one; every rank must call it.

    Raises:
        UserError: data are wrong.
        RankFailed: a rank met an error that is no user's mistake, and they are several.
    """
    with failing_together():
        if error is not None:
            raise error


def check_same_data(cfg: TrainConfig, data: BatchSource) -> None:
    """See that all ranks read the same data in the same order; every rank must call it.

    Stages that read different ones would predict the tokens of one text from another.

    Raises:
        DataError: they do not, on every rank.
    """
    holders: dict[str, list[int]] = {}
    for rank, digest in enumerate(gather_objects(data.digest)):
        holders.setdefault(digest, []).append(rank)
    if len(holders) > 1:
        apart = ", other ones on ".join(map(ranks_in_words, holders.values()))
        hint = "give every machine the same files"
        raise DataError(f"holds {len(holders)} data sets: one on {apart}", file=cfg.data.train_folder, hint=hint)

"""The training data of one data-parallel rank, at random access by step."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from evo_core.data.corpus.blocks import BlockedDocuments
from evo_core.data.corpus.index import Index
from evo_core.data.loader.batch import Batch
from evo_core.data.loader.order import BatchSize
from evo_core.data.loader.packing import Pieces, pack, split
from evo_core.data.loader.scale import SCALE, Scale
from evo_core.data.loader.train_order import order_of, streams_of
from evo_core.data.loader.train_sets import Documents, is_large, open_sets, shared_index
from evo_core.data.shards.folder import data_types
from evo_core.data.shards.origins import ORIGINS
from evo_core.data.shards.targets import NONE_YET
from evo_core.storage.stage import stage

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

log = logging.getLogger(__name__)


class TrainData:
    """Batches as a function of the step: there is no state to save.

    The packs of a step, taken over all ranks, are the same at every dp_size that has the same global batch;
    rank r takes every dp_size-th pack from the r-th on.

    Attributes:
        types: data types; their positions are the type ids of a batch.
        tokens: tokens of each type, in one epoch.
        trained: how many of these are trained on, as far as their signs say it (`TokenFile.trained`).
        digest: of the data's order (seed, packing and tokens); a run goes on with the same data if it is the same.

    Args:
        cfg: the training job.
        dp_rank, dp_size: this data-parallel rank, and how many there are.
        scale: from how many documents on they are in the order of `large_order`.

    Raises:
        DataError: there is no data, a file is damaged, or an id is outside model.vocab_size.
        ConfigError: data.global_batch_tokens does not divide over dp_size ranks, or type_weights or min_length_dict
            do not fit the folder.
    """

    sequential = False
    """Whether steps must be drawn one after the other."""

    def __init__(self, cfg: TrainConfig, *, dp_rank: int, dp_size: int, scale: Scale = SCALE) -> None:
        if not 0 <= dp_rank < dp_size:
            raise ValueError(f"rank {dp_rank} of {dp_size}")
        self._data, self._dp_rank, self._dp_size = cfg.data, dp_rank, dp_size
        self._batch_size = batch_size(cfg, dp_size)
        folder = None if cfg.data.train_folder is None else stage(cfg.data.train_folder, beside=(ORIGINS,))
        self.types = data_types(folder)
        large = scale if folder is not None and is_large(cfg, folder, scale) else None
        self._index = Index() if folder is None or not cfg.data.use_shm else shared_index(cfg, folder, large)
        sets, self.trained, self.digest = open_sets(cfg, folder, dp_rank, self._index, large)
        self.tokens = {name: _tokens(documents) for name, documents in zip(self.types, sets, strict=True)}
        self._streams = streams_of(cfg, self.types, sets, self._index, scale)
        self._looked = False
        self._order = order_of(cfg, self.types, self._streams, self._batch_size, self._index, large)

    def batch(self, step: int) -> Batch:
        """This rank's micro-batches of a step, counted from 0 (skipped steps count as well)."""
        data = self._data
        first, end = self._batch_size.before(step), self._batch_size.before(step + 1)
        positions = range(first + self._dp_rank, end, self._dp_size)
        arrays = np.empty((4, len(positions), data.packed_length), np.int64)
        parts = []
        for row, position in enumerate(positions):
            type_id, number = self._order.locate(position)
            parts.append(self._streams[type_id].pieces(number))
            arrays[3, row] = type_id
        # Every pack is full: all of them are made at once, as a long one.
        packed = pack(
            Pieces.joined(parts),
            packed_length=len(positions) * data.packed_length,
            seq_len=data.seq_len,
            into_one=data.pack_sample_into_one,
            rows=not data.use_packed_dataset,
            mask_token_zero=data.mask_token_zero,
            out=arrays[:3].reshape(3, -1),
        )
        input_ids, labels, positions, type_ids = torch.from_numpy(arrays)
        cu_seqlens = [torch.from_numpy(of_pack) for of_pack in split(packed.cu_seqlens, data.packed_length)]
        return Batch(input_ids, labels, positions, type_ids, cu_seqlens)

    def draw(self, step: int) -> tuple[Batch, None]:
        """A step's batch; no cursor, since the step says what comes next."""
        batch = self.batch(step)
        if not self._looked:
            self._looked = True
            # What seq_len cuts off and mask_token_zero shows in batches alone. Data without any were told of before.
            if any(self.trained.values()) and not batch.has_targets():
                log.warning("%s: %s", self._data.train_folder, NONE_YET)
        return batch, None

    def restore(self, cursor: None) -> None:
        """Nothing to do: the step says where to go on."""

    def epoch(self, step: int) -> int:
        """The pass over the data in which a step begins, from 0."""
        return self._order.epoch_of(self._batch_size.before(step))

    def describe(self) -> str:
        """Tokens by type, for the log."""
        counts = (f"{name} {n:,} ({self.trained[name]:,} to train on)" for name, n in self.tokens.items() if n)
        return ", ".join(counts) + " tokens"

    def close(self) -> None:
        """Give back what is shared with other processes."""
        self._index.close()


def batch_size(cfg: TrainConfig, dp_size: int) -> BatchSize:
    """Micro-batches of each step over all ranks.

    Raises:
        ConfigError: data.global_batch_tokens does not divide over dp_size ranks.
    """
    full = cfg.micro_num(dp_size) * dp_size
    if (rampup := cfg.data.rampup) is None:
        return BatchSize.constant(full)
    return BatchSize(full, rampup.start * dp_size, rampup.increment * dp_size, rampup.every)


def _tokens(documents: Documents) -> int:
    return documents.tokens if isinstance(documents, BlockedDocuments) else int(documents.lengths.sum())

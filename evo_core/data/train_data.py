"""The training data of one data-parallel rank, at random access by step."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from evo_core.data.batch import Batch, stack
from evo_core.data.document_set import Documents, DocumentSet
from evo_core.data.packing import Pack, pack
from evo_core.data.random_data import TRAIN_DOCUMENTS, RandomDocuments
from evo_core.data.sampling import BatchSize, PackOrder, ShuffledStream
from evo_core.data.token_files import TokenFile, file_digest, open_token_files
from evo_core.data.token_folder import RANDOM_TYPES, bin_files, data_types
from evo_core.errors import DataError

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

log = logging.getLogger(__name__)

# Raised when the order of the data changes for the same seed and data.
_ORDER_VERSION = 1


class TrainData:
    """Batches as a function of the step: there is no state to save.

    The packs of a step, taken over all ranks, are the same at every dp_size that has the same global batch;
    rank r takes every dp_size-th pack from the r-th on.

    Attributes:
        types: data types; their positions are the type ids of a batch.
        tokens: training tokens of each type, in one epoch.
        digest: of the data's order (seed, packing and files); a run goes on with the same data if it is the same.

    Args:
        cfg: the training job.
        dp_rank, dp_size: this rank's place among the data-parallel ranks.

    Raises:
        DataError: there is no data, a file is damaged, or an id is outside model.vocab_size.
        ConfigError: data.global_batch_tokens does not divide over dp_size ranks.
    """

    def __init__(self, cfg: TrainConfig, *, dp_rank: int, dp_size: int) -> None:
        if not 0 <= dp_rank < dp_size:
            raise ValueError(f"rank {dp_rank} of {dp_size}")
        self._data, self._dp_rank, self._dp_size = cfg.data, dp_rank, dp_size
        self._batch_size = _batch_size(cfg, dp_size)
        folder = cfg.data.train_folder
        self.types = data_types(folder)
        sets, self.digest = _random_sets(cfg) if folder is None else _token_sets(cfg, Path(folder), dp_rank)
        self._streams = {
            number: ShuffledStream(documents, seed=cfg.seed, name=self.types[number])
            for number, documents in enumerate(sets)
            if len(documents.lengths)
        }
        per_type = [int(documents.lengths.sum()) for documents in sets]
        self.tokens = dict(zip(self.types, per_type, strict=True))
        self._order = PackOrder(per_type, cfg.data.packed_length, cfg.seed)

    def batch(self, step: int) -> Batch:
        """This rank's micro-batches of a step, counted from 0 (skipped steps count as well)."""
        place = self._batch_size.before(step) + self._dp_rank
        end = self._batch_size.before(step + 1)
        packs, types = [], []
        while place < end:
            type_id, number = self._order.locate(place)
            packs.append(self._pack(type_id, number))
            types.append(type_id)
            place += self._dp_size
        return stack(packs, types)

    def epoch(self, step: int) -> int:
        """The pass over the data in which a step begins, from 0."""
        return self._order.epoch_of(self._batch_size.before(step))

    def _pack(self, type_id: int, number: int) -> Pack:
        data = self._data
        start = number * data.packed_length
        return pack(
            self._streams[type_id].pieces(start, start + data.packed_length),
            packed_length=data.packed_length,
            seq_len=data.seq_len,
            into_one=data.pack_sample_into_one,
            mask_token_zero=data.mask_token_zero,
        )


def _batch_size(cfg: TrainConfig, dp_size: int) -> BatchSize:
    full = cfg.micro_num(dp_size) * dp_size
    if (rampup := cfg.data.rampup) is None:
        return BatchSize.constant(full)
    return BatchSize(full, rampup.start * dp_size, rampup.increment * dp_size, rampup.every)


def _random_sets(cfg: TrainConfig) -> tuple[list[Documents], str]:
    fixed_length, vocab_size = cfg.data.fixed_random_dataset_seqlen, cfg.model.vocab_size
    samples = RandomDocuments(
        TRAIN_DOCUMENTS, seq_len=cfg.data.seq_len, fixed_length=fixed_length, vocab_size=vocab_size
    )
    none = [DocumentSet([]) for _ in RANDOM_TYPES[1:]]
    return [samples, *none], _digest(cfg, {"random": [fixed_length, vocab_size]})


def _token_sets(cfg: TrainConfig, folder: Path, dp_rank: int) -> tuple[list[Documents], str]:
    paths = {name: bin_files(folder, name) for name in data_types(folder)}
    opened = open_token_files([path for of_type in paths.values() for path in of_type], first=dp_rank)
    for file in opened:
        file.check(cfg.model.vocab_size)
    files = iter(opened)
    sets: list[Documents] = []
    for name, of_type in paths.items():
        sets.append(_type_set(name, [next(files) for _ in of_type], cfg.data.min_length))
    if not any(len(documents.lengths) for documents in sets):
        raise DataError(f"no document is left to train on (data.min_length {cfg.data.min_length})", file=folder)
    contents = {
        name: [(str(path.relative_to(folder)), file_digest(path, with_time=False)) for path in of_type]
        for name, of_type in paths.items()
    }
    return sets, _digest(cfg, contents)


def _type_set(name: str, files: list[TokenFile], min_length: int) -> DocumentSet:
    documents = DocumentSet(files, min_length=min_length)
    if not len(documents):
        log.warning("data type %s has no document of at least min_length %d tokens", name, min_length)
    return documents


def _digest(cfg: TrainConfig, contents: object) -> str:
    data = cfg.data
    order = {
        "version": _ORDER_VERSION,
        "seed": cfg.seed,
        "seq_len": data.seq_len,
        "packed_length": data.packed_length,
        "pack_sample_into_one": data.pack_sample_into_one,
        "mask_token_zero": data.mask_token_zero,
        "min_length": data.min_length,
        "contents": contents,
    }
    return hashlib.sha256(json.dumps(order, sort_keys=True).encode()).hexdigest()

"""The training data of one data-parallel rank, at random access by step."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from evo_core.data.corpus.blocks import BlockedDocuments
from evo_core.data.corpus.corpus import MinLength, open_corpus
from evo_core.data.corpus.document_set import DocumentSet, Table, TokenizedDocuments
from evo_core.data.corpus.index import Index, SharedIndex
from evo_core.data.corpus.large import has_more_documents, open_blocks
from evo_core.data.corpus.random_data import TRAIN_DOCUMENTS, RandomDocuments
from evo_core.data.loader.batch import Batch
from evo_core.data.loader.internevo_packing import FileStream, InternevoOrder
from evo_core.data.loader.large_order import GroupedRows, GroupedTokens, Groups, WindowOrder, blocks_of_group
from evo_core.data.loader.mixing import WeightedOrder
from evo_core.data.loader.order import BatchSize, Order, PackOrder, RowStream, Stream, TokenStream, shuffled
from evo_core.data.loader.packing import Pieces, pack, split
from evo_core.data.loader.scale import LARGE_ORDER_VERSION, ORDER_VERSION, SCALE, Scale
from evo_core.data.shards.folder import RANDOM_TYPES, bin_files, data_types
from evo_core.data.shards.format import meta_path
from evo_core.data.shards.origins import ORIGINS
from evo_core.data.shards.targets import NONE_YET
from evo_core.errors import ConfigError, DataError
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
        large = scale if folder is not None and _is_large(cfg, folder, scale) else None
        self._index = Index() if folder is None or not cfg.data.use_shm else _shared_index(cfg, folder, large)
        sets, self.trained, self.digest = _sets(cfg, folder, dp_rank, self._index, large)
        self.tokens = {name: _tokens(documents) for name, documents in zip(self.types, sets, strict=True)}
        self._streams = _streams(cfg, self.types, sets, self._index, scale)
        self._looked = False
        self._order = _order(cfg, self.types, self._streams, self._batch_size, self._index, large)

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


def _is_large(cfg: TrainConfig, folder: Path, scale: Scale) -> bool:
    """Whether there are so many documents that they are in the order of `large_order`."""
    if not has_more_documents(folder, scale.documents):
        return False
    if cfg.data.packing == "internevo":
        log.warning(
            "data.packing: internevo is InternEvo's order, which every process keeps whole: more than %s documents "
            "take about %.0f GB (continuous has another order for so many, which takes little)",
            f"{scale.documents:,}",
            scale.documents * _WHOLE_BYTES / 1e9,
        )
        return False
    log.info("more than %s documents: they are in the order for so many (docs/data.md)", f"{scale.documents:,}")
    return True


_WHOLE_BYTES = 72
"""What a document takes at most where the order is kept whole, as ``benchmarks.order --whole`` measures it."""


def _tokens(documents: TokenizedDocuments | BlockedDocuments) -> int:
    return documents.tokens if isinstance(documents, BlockedDocuments) else int(documents.lengths.sum())


def _streams(
    cfg: TrainConfig,
    types: tuple[str, ...],
    sets: Sequence[TokenizedDocuments | BlockedDocuments],
    index: Index,
    scale: Scale,
) -> list[Stream]:
    blocks = sum(len(documents) for documents in sets if isinstance(documents, BlockedDocuments))
    streams: list[Stream] = []
    for name, documents in zip(types, sets, strict=True):
        if isinstance(documents, BlockedDocuments):
            of_group = blocks_of_group(len(documents), blocks, scale.group)
            streams.append(_grouped(cfg, Groups(documents, of_group, seed=cfg.seed, name=name, index=index)))
        else:
            streams.append(_stream(cfg, name, documents, index))
    return streams


def _grouped(cfg: TrainConfig, groups: Groups) -> Stream:
    data = cfg.data
    if data.use_packed_dataset:
        return GroupedTokens(groups, data.packed_length)
    return GroupedRows(groups, data.seq_len, data.micro_bsz)


def _stream(cfg: TrainConfig, name: str, documents: TokenizedDocuments, index: Index) -> Stream:
    data = cfg.data
    if data.packing == "internevo":
        assert isinstance(documents, DocumentSet)
        return FileStream(documents, data.packed_length, index=index, name=name)
    order = shuffled(len(documents.lengths), cfg.seed, name)
    if data.use_packed_dataset:
        return TokenStream(documents, data.packed_length, order=order, index=index, name=name)
    return RowStream(documents, data.seq_len, data.micro_bsz, order=order, index=index, name=name)


def _order(
    cfg: TrainConfig,
    types: tuple[str, ...],
    streams: list[Stream],
    batch_size: BatchSize,
    index: Index,
    large: Scale | None,
) -> Order:
    sizes, per_pack = [stream.size for stream in streams], streams[0].per_pack
    if cfg.data.packing == "internevo":
        return InternevoOrder(sizes, batch_size.growing, batch_size.full, cfg.seed, index)
    if (weights := cfg.data.type_weights) is not None:
        _check_weights(weights, dict(zip(types, sizes, strict=True)))
        # Packs of a type come in the order of its stream: that is as good for streams of any size.
        return WeightedOrder([weights[name] for name in types], sizes, per_pack, cfg.seed, index)
    if large is None:
        return PackOrder(sizes, per_pack, cfg.seed, index)
    groups = max(stream.groups for stream in streams if isinstance(stream, GroupedTokens | GroupedRows))
    return WindowOrder(sizes, per_pack, cfg.seed, index, windows=groups, most=large.window)


def _check_weights(weights: dict[str, float], sizes: dict[str, int]) -> None:
    key, known = "data.type_weights", ", ".join(sizes)
    if unknown := [name for name in weights if name not in sizes]:
        raise ConfigError(f"there is no data type {unknown[0]}, only {known}", key=key)
    if missing := [name for name in sizes if name not in weights]:
        raise ConfigError(f"{missing[0]} has no weight", key=key, hint=f"write {missing[0]}: 0 to leave it out")
    if empty := [name for name, weight in weights.items() if weight and not sizes[name]]:
        raise ConfigError(f"{empty[0]} has no documents to train on", key=key, hint=f"write {empty[0]}: 0")


_Sets = tuple[Sequence[TokenizedDocuments | BlockedDocuments], dict[str, int], str]
"""The documents of each type, by type how many of their tokens are trained on, and a digest of the data's order."""


def _sets(cfg: TrainConfig, folder: Path | None, dp_rank: int, index: Index, large: Scale | None) -> _Sets:
    if folder is None:
        return _random_sets(cfg)
    return _token_sets(cfg, folder, dp_rank, index) if large is None else _large_sets(cfg, folder, dp_rank, large)


def _random_sets(cfg: TrainConfig) -> _Sets:
    fixed_length, vocab_size = cfg.data.fixed_random_dataset_seqlen, cfg.model.vocab_size
    samples = RandomDocuments(
        TRAIN_DOCUMENTS, seq_len=cfg.data.seq_len, fixed_length=fixed_length, vocab_size=vocab_size
    )
    nothing = Table(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    none = [DocumentSet([], nothing) for _ in RANDOM_TYPES[1:]]
    trained = dict.fromkeys(RANDOM_TYPES, 0) | {RANDOM_TYPES[0]: int((samples.lengths - 1).sum())}
    return [samples, *none], trained, _digest(cfg, {"random": [fixed_length, vocab_size]})


def _token_sets(cfg: TrainConfig, folder: Path, dp_rank: int, index: Index) -> _Sets:
    data = cfg.data
    by_file = data.packing == "internevo"
    corpus = open_corpus(
        folder,
        vocab_size=cfg.model.vocab_size,
        min_length=MinLength(data.min_length, data.min_length_dict),
        by_origin=not by_file,
        first=dp_rank,
        index=index if data.use_shm else None,
    )
    _check_documents(cfg, folder, {name: len(documents) for name, documents in corpus.documents.items()})
    contents: dict[str, object] = dict(corpus.digests)
    if by_file:  # here it matters where a file ends
        contents = {n: [d, np.bincount(corpus.documents[n].files).tolist()] for n, d in corpus.digests.items()}
    return list(corpus.documents.values()), corpus.trained, _digest(cfg, contents)


def _large_sets(cfg: TrainConfig, folder: Path, dp_rank: int, scale: Scale) -> _Sets:
    data = cfg.data
    corpus = open_blocks(
        folder,
        size=scale.block,
        vocab_size=cfg.model.vocab_size,
        min_length=MinLength(data.min_length, data.min_length_dict),
        first=dp_rank,
    )
    _check_documents(cfg, folder, {name: of_type.documents for name, of_type in corpus.documents.items()})
    return list(corpus.documents.values()), corpus.trained, _digest(cfg, corpus.digests, scale)


def _check_documents(cfg: TrainConfig, folder: Path, documents: Mapping[str, int]) -> None:
    """Say which types have nothing to train on; that all have nothing is an error."""
    shortest = cfg.data.min_length
    if not any(documents.values()):
        raise DataError(f"no document is left to train on (data.min_length {shortest})", file=folder)
    for name, count in documents.items():
        if not count:
            log.warning("data type %s has no document of at least min_length %d tokens", name, shortest)


def _digest(cfg: TrainConfig, contents: object, large: Scale | None = None) -> str:
    data = cfg.data
    version = ORDER_VERSION if large is None else [LARGE_ORDER_VERSION, large.block, large.group, large.window]
    order = {
        "version": version,
        "seed": cfg.seed,
        "seq_len": data.seq_len,
        "packed_length": data.packed_length,
        "pack_sample_into_one": data.pack_sample_into_one,
        "use_packed_dataset": data.use_packed_dataset,
        "packing": data.packing,
        "type_weights": data.type_weights,
        "mask_token_zero": data.mask_token_zero,
        "contents": contents,
    }
    return hashlib.sha256(json.dumps(order, sort_keys=True).encode()).hexdigest()


def _shared_index(cfg: TrainConfig, folder: Path, large: Scale | None) -> SharedIndex:
    """The index for this job on these files: another one if any of them was changed."""
    data = cfg.data
    paths = [path for name in data_types(folder) for path in bin_files(folder, name)]
    origins = folder.absolute().parent / ORIGINS
    files = [*paths, *(meta for path in paths if (meta := meta_path(path)).exists()), *[origins] * origins.exists()]
    key = {
        "files": [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files],
        "order": _digest(cfg, [data.min_length, data.min_length_dict, data.micro_num, data.global_batch_tokens], large),
    }
    return SharedIndex(data.shm_path, hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32])

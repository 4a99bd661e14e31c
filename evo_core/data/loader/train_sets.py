"""The documents that a training job reads, and the digest of their order.

Which of two forms they have follows from how many there are (`scale`): whole tables of documents, or blocks of which
little is kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evo_core.data.corpus.blocks import BlockedDocuments
from evo_core.data.corpus.corpus import MinLength, open_corpus
from evo_core.data.corpus.document_set import DocumentSet, Table, TokenizedDocuments
from evo_core.data.corpus.index import Index, SharedIndex
from evo_core.data.corpus.large import has_more_documents, open_blocks
from evo_core.data.corpus.random_data import TRAIN_DOCUMENTS, RandomDocuments
from evo_core.data.loader.scale import LARGE_ORDER_VERSION, ORDER_VERSION, Scale
from evo_core.data.shards.folder import RANDOM_TYPES, bin_files, data_types
from evo_core.data.shards.format import meta_path
from evo_core.data.shards.origins import ORIGINS
from evo_core.errors import DataError

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

log = logging.getLogger(__name__)

Documents = TokenizedDocuments | BlockedDocuments
"""Those of a data type, in one form or the other."""


def is_large(cfg: TrainConfig, folder: Path, scale: Scale) -> bool:
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


Sets = tuple[Sequence[Documents], dict[str, int], str]
"""The documents of each type, by type how many of their tokens are trained on, and a digest of the data's order."""


def open_sets(cfg: TrainConfig, folder: Path | None, dp_rank: int, index: Index, large: Scale | None) -> Sets:
    """Open the documents of all types.

    Args:
        folder: of token shards; None is random data.
        dp_rank: this data-parallel rank, for sharing the work of decoding.
        index: where the processes of this machine share what they find out.
        large: the scale of many documents, where there are many.

    Raises:
        DataError: there is none to train on, a file is damaged, or an id is outside model.vocab_size.
        ConfigError: min_length_dict does not fit the folder.
    """
    if folder is None:
        return _random_sets(cfg)
    return _token_sets(cfg, folder, dp_rank, index) if large is None else _large_sets(cfg, folder, dp_rank, large)


def _random_sets(cfg: TrainConfig) -> Sets:
    fixed_length, vocab_size = cfg.data.fixed_random_dataset_seqlen, cfg.model.vocab_size
    samples = RandomDocuments(
        TRAIN_DOCUMENTS, seq_len=cfg.data.seq_len, fixed_length=fixed_length, vocab_size=vocab_size
    )
    nothing = Table(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    none = [DocumentSet([], nothing) for _ in RANDOM_TYPES[1:]]
    trained = dict.fromkeys(RANDOM_TYPES, 0) | {RANDOM_TYPES[0]: int((samples.lengths - 1).sum())}
    return [samples, *none], trained, _digest(cfg, {"random": [fixed_length, vocab_size]})


def _token_sets(cfg: TrainConfig, folder: Path, dp_rank: int, index: Index) -> Sets:
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


def _large_sets(cfg: TrainConfig, folder: Path, dp_rank: int, scale: Scale) -> Sets:
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


def shared_index(cfg: TrainConfig, folder: Path, large: Scale | None) -> SharedIndex:
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

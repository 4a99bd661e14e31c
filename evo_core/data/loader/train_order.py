"""From documents to streams of packs, and the order of these: which of them a training job asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evo_core.data.corpus.blocks import BlockedDocuments
from evo_core.data.corpus.document_set import DocumentSet, TokenizedDocuments
from evo_core.data.corpus.index import Index
from evo_core.data.loader.internevo_packing import FileStream, InternevoOrder
from evo_core.data.loader.large_order import GroupedRows, GroupedTokens, Groups, WindowOrder, blocks_of_group
from evo_core.data.loader.mixing import WeightedOrder
from evo_core.data.loader.order import BatchSize, Order, PackOrder, RowStream, Stream, TokenStream, shuffled
from evo_core.data.loader.scale import Scale
from evo_core.data.loader.train_sets import Documents
from evo_core.errors import ConfigError

if TYPE_CHECKING:
    from evo_core.config import TrainConfig


def streams_of(
    cfg: TrainConfig, types: tuple[str, ...], sets: Sequence[Documents], index: Index, scale: Scale
) -> list[Stream]:
    """The packs of each type.

    Args:
        sets: documents of each type.
        index: keeps their orders.
        scale: of blocks and groups.
    """
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


def order_of(
    cfg: TrainConfig,
    types: tuple[str, ...],
    streams: list[Stream],
    batch_size: BatchSize,
    index: Index,
    large: Scale | None,
) -> Order:
    """The order of all types' packs.

    Args:
        large: the scale of many documents, where there are many.

    Raises:
        ConfigError: type_weights do not fit the types.
        DataError: there are fewer packs than InternEvo's order needs.
    """
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

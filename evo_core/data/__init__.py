"""From raw text to training batches.

The rooms, in the order of the data's way::

    raw/       a raw file -> documents
    shards/    the form of token files on disk
    tokenize/  documents -> token files, on many cores
    sft/       instructions and conversations -> token files, only the answers trained on
    dataset/   token files -> shards by type, with a held-out part
    corpus/    shards -> documents at random access
    loader/    documents -> batches, drawn ahead

and beside them `inspection` (what is in token files), `sample` (text to try things with) and `commands`. A room imports
from those above it alone, and says on its first page what comes in, what goes out and what its files are. Names here
are imported when they are first used: planning needs neither numpy nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evo_core.data.loader.batch import Batch
    from evo_core.data.loader.prefetch import Prefetch, open_source
    from evo_core.data.loader.train_data import TrainData
    from evo_core.data.loader.valid_data import validation_batches
    from evo_core.data.raw.documents import read_documents
    from evo_core.data.shards.folder import data_types
    from evo_core.data.shards.format import BinReader, BinWriter
    from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece

__all__ = [
    "Batch",
    "BinReader",
    "BinWriter",
    "Prefetch",
    "Tokenizer",
    "TrainData",
    "data_types",
    "load_tokenizer",
    "open_source",
    "read_documents",
    "train_sentencepiece",
    "validation_batches",
]

_MODULES = {
    "Batch": "loader.batch",
    "Prefetch": "loader.prefetch",
    "open_source": "loader.prefetch",
    "BinReader": "shards.format",
    "BinWriter": "shards.format",
    "Tokenizer": "tokenize.tokenizers",
    "TrainData": "loader.train_data",
    "data_types": "shards.folder",
    "load_tokenizer": "tokenize.tokenizers",
    "read_documents": "raw.documents",
    "train_sentencepiece": "tokenize.tokenizers",
    "validation_batches": "loader.valid_data",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)

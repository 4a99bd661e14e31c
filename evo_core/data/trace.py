"""From a sentence back to the raw files it was trained from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evo_core.data.shards.format import BinReader
from evo_core.data.shards.origins import Origins
from evo_core.data.tokenize.tokenizers import Tokenizer


class Found(NamedTuple):
    """A document that holds the text: its shard below the folder, its number in it from 0, and its raw file."""

    shard: str
    document: int
    origin: str


def find_text(folder: str | Path, tokenizer: Tokenizer, text: str) -> Iterator[Found]:
    """The documents of a folder of shards (as `write_shards` leaves it) whose text contains `text`.

    Every document is decoded, about 5 MB of text a second.

    Raises:
        DataError: the folder has no ``origins.json``, or a shard is damaged.
    """
    folder = Path(folder)
    origins = Origins.load(folder)
    for shard in origins.shards:
        reader = BinReader(folder / shard)
        for document in range(len(reader)):
            if text in tokenizer.decode(np.abs(reader.tokens(document)).tolist()):
                yield Found(shard, document, origins.of(shard, document))

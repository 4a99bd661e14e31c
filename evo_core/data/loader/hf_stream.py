"""Training data from a Hugging Face data set (``data.type: hf``): streamed, tokenized while training, packed.

Each data-parallel rank reads its part (`datasets.distributed.split_dataset_by_node`), in the data set's order, over
and over. A text is one document, with begin and end token where the tokenizer has them, and what is beyond seq_len
tokens is left out. Documents are packed greedily: one after the other until the next does not fit into the pack, which
begins the next one; the rest of a pack is padding.

The data cursor is the data set's own state and how many documents were taken since, so a run goes on where it stopped
without reading again what it has seen. It points into the documents of one rank: the number of data-parallel ranks
cannot change.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from evo_core.data.loader.batch import Batch
from evo_core.data.loader.hf_dataset import open_stream, unreadable
from evo_core.data.loader.packing import Pack, Pieces, pack
from evo_core.data.loader.train_data import batch_size
from evo_core.data.shards.targets import NONE_YET
from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer
from evo_core.errors import DataError
from evo_core.storage.location import is_hub_id, local_path

if TYPE_CHECKING:
    from datasets import IterableDataset

    from evo_core.config import TrainConfig

log = logging.getLogger(__name__)

_ORDER_VERSION = 2
_TEXTS, _CHARACTERS = 1000, 4 << 20
"""Texts are tokenized together until there are so many of them, or so much of them."""


class StreamData:
    """Batches of one data-parallel rank, drawn one after the other.

    Attributes:
        types: data types, as in InternEvo a single one.
        digest: of the data set and of how it becomes batches.
        trained: nobody knows how many tokens are trained on before they are read.

    Args:
        cfg: the training job.
        dp_rank, dp_size: this data-parallel rank, and how many there are.

    Raises:
        DataError: the data set or the tokenizer cannot be opened, or does not fit the model.
        ConfigError: data.global_batch_tokens does not divide over dp_size ranks.
    """

    sequential = True
    types = ("en",)
    trained = None

    def __init__(self, cfg: TrainConfig, *, dp_rank: int, dp_size: int) -> None:
        data = cfg.data
        assert data.train_folder is not None
        assert data.tokenizer_path is not None
        self._data, self._dp_size = data, dp_size
        self._batch_size = batch_size(cfg, dp_size)
        tokenizer = load_tokenizer(data.tokenizer_path)
        if tokenizer.vocab_size > cfg.model.vocab_size:
            raise DataError(
                f"the tokenizer has {tokenizer.vocab_size} pieces, which do not fit the model's vocabulary of "
                f"{cfg.model.vocab_size}",
                file=tokenizer.path,
                hint=f"set model.vocab_size to at least {tokenizer.vocab_size}",
            )
        self._name, self._looked = data.train_folder, False
        self._documents = _Documents(
            open_stream(data.train_folder, data.subset_name),
            tokenizer,
            RankShare(dp_rank, dp_size),
            name=self._name,
            text_key=data.text_key,
            min_length=data.min_length,
            max_length=data.seq_len,
        )
        self.digest = _digest(cfg, tokenizer)

    def draw(self, step: int) -> tuple[Batch, Any]:
        """This rank's micro-batches of a step, and the data cursor after them, as plain data.

        The steps must be asked for one after the other, from 0 or from where `restore` went on.
        """
        data = self._data
        arrays = np.zeros((4, self._batch_size.at(step) // self._dp_size, data.packed_length), np.int64)
        packs = [self._pack(arrays[:3, row]) for row in range(arrays.shape[1])]
        input_ids, labels, positions, type_ids = torch.from_numpy(arrays)
        cu_seqlens = [torch.from_numpy(packed.cu_seqlens) for packed in packs]
        batch = Batch(input_ids, labels, positions, type_ids, cu_seqlens)
        if not self._looked:
            self._looked = True
            if not batch.has_targets():
                log.warning("%s: %s", self._name, NONE_YET)
        return batch, self._documents.cursor

    def restore(self, cursor: Any) -> None:
        """Go on from a cursor that `draw` gave."""
        self._documents.restore(cursor)

    def describe(self) -> str:
        """What is read, for the log."""
        return f"a stream of {self._name}"

    def close(self) -> None:
        """Nothing is shared with other processes."""

    def _pack(self, out: np.ndarray) -> Pack:
        data, documents = self._data, self._documents
        taken: list[np.ndarray] = []
        room = data.packed_length
        while len(following := documents.peek()) <= room and (data.use_packed_dataset or len(taken) < data.micro_bsz):
            taken.append(following)
            room -= len(following)
            documents.advance()
        return pack(
            Pieces.whole(taken),
            packed_length=data.packed_length,
            seq_len=data.seq_len,
            rows=not data.use_packed_dataset,
            mask_token_zero=data.mask_token_zero,
            out=out,
        )


class RankShare(NamedTuple):
    """The part of a data set that a rank reads."""

    rank: int
    ranks: int


class _Documents:
    """The endless documents of one rank, tokenized some at a time.

    Attributes:
        nulls: records passed over so far because null stands where their text should.
        emptied: texts passed over so far because the tokenizer leaves nothing of them, blank ones among them.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        tokenizer: Tokenizer,
        part: RankShare,
        *,
        name: str,
        text_key: str,
        min_length: int,
        max_length: int,
    ) -> None:
        self._whole, self._part = dataset, part
        self._tokenizer, self._name, self._text_key = tokenizer, name, text_key
        self._min_length, self._max_length = max(min_length, 1), max_length
        self.nulls = self.emptied = 0
        self._begin_epoch(0)

    @property
    def cursor(self) -> dict[str, Any]:
        """Where the next document is: the state that the data set had before, and documents to pass over from there."""
        return {"epoch": self._epoch, "dataset": self._state, "taken": self._taken}

    def restore(self, cursor: dict[str, Any]) -> None:
        """Go to where a cursor points."""
        self._begin_epoch(cursor["epoch"], cursor["dataset"])
        self._taken = cursor["taken"]

    def peek(self) -> np.ndarray:
        """The next document, int64, at least one token."""
        while self._taken >= len(self._ahead):
            self._read_on()
        return self._ahead[self._taken]

    def advance(self) -> None:
        """Take it."""
        self._taken += 1

    def _begin_epoch(self, epoch: int, state: dict[str, Any] | None = None) -> None:
        from datasets.distributed import split_dataset_by_node

        self._dataset = split_dataset_by_node(self._whole, *self._part)
        if state is not None:
            self._dataset.load_state_dict(state)
        self._texts = self._read()
        self._epoch, self._state = epoch, state
        self._ahead: list[np.ndarray] = []
        self._taken = 0
        self._found = state is not None  # any document at all: without one, the data set would be read over and over

    def _read_on(self) -> None:
        """Tokenize some texts more; after the last one begin again."""
        passed = len(self._ahead)
        if passed:
            # A data set tells its state only where it is now, ahead of what training has taken. So the cursor is the
            # state before the texts in hand, and how many of their documents were taken.
            self._state = self._dataset.state_dict()
        texts, characters = [], 0
        for text in self._texts:
            texts.append(text)
            characters += len(text)
            if len(texts) >= _TEXTS or characters >= _CHARACTERS:
                break
        else:
            if not texts:
                self._say_passed_over()
                if not self._found:
                    raise DataError(
                        f"data-parallel rank {self._part.rank} of {self._part.ranks} finds no text of at least "
                        f"{self._min_length} tokens in this data set",
                        file=self._name,
                    )
                self._begin_epoch(self._epoch + 1)
                return
        tokenizer = self._tokenizer
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        kept = [ids for ids in tokenizer.encode_batch(texts) if ids]
        self.emptied += len(texts) - len(kept)
        documents = ([*begin, *ids, *end] for ids in kept)
        self._ahead = [np.array(ids[: self._max_length], np.int64) for ids in documents if len(ids) >= self._min_length]
        self._taken -= passed  # above 0 only just after `restore`, where groups of texts may be smaller than they were
        self._found = self._found or bool(self._ahead)

    def _read(self) -> Iterator[str]:
        records = iter(self._dataset)
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:  # each file format fails in its own way
                raise unreadable(self._name, error) from error
            text = record.get(self._text_key)
            if isinstance(text, str):
                yield text
            elif text is None and self._text_key in record:
                self._count_null()
            else:
                found = (
                    f"but with a value of type {type(text).__name__}"
                    if self._text_key in record
                    else f"but with {', '.join(record)}"
                )
                raise DataError(
                    f"a record without text in {self._text_key}, {found}",
                    file=self._name,
                    key="data.text_key",
                    hint="name the field that holds the text",
                )

    def _say_passed_over(self) -> None:
        """At the end of the first pass: how many records were no documents."""
        if self._epoch == 0 and self.nulls:
            log.info("%s: %d records held null in %s", self._name, self.nulls, self._text_key)
        if self._epoch == 0 and self.emptied:
            log.info("%s: of %d texts the tokenizer left nothing", self._name, self.emptied)

    def _count_null(self) -> None:
        if not self.nulls:
            log.warning("%s: records with null in %s are passed over, like blank texts", self._name, self._text_key)
        self.nulls += 1


def _digest(cfg: TrainConfig, tokenizer: Tokenizer) -> str:
    """Of a hub's data set by its name, of a local one by the names and sizes of its files."""
    data = cfg.data
    assert data.train_folder is not None
    source: Any = data.train_folder
    if not is_hub_id(source):
        path = local_path(source)
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        source = [(file.relative_to(path.parent).parts[1:], file.stat().st_size) for file in files]
    order = {
        "version": _ORDER_VERSION,
        "source": source,
        "subset": data.subset_name,
        "text_key": data.text_key,
        "tokenizer": tokenizer.digest,
        "seq_len": data.seq_len,
        "packed_length": data.packed_length,
        "use_packed_dataset": data.use_packed_dataset,
        "min_length": data.min_length,
        "mask_token_zero": data.mask_token_zero,
    }
    return hashlib.sha256(json.dumps(order, sort_keys=True).encode()).hexdigest()

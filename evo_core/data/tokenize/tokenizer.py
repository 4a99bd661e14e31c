"""What every tokenizer does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from evo_core.errors import DataError
from evo_core.storage.files import copy_file

_COMPANIONS = ("chat_template.jinja",)

WHERE_FROM = (
    "give a SentencePiece .model (InternLM's V7_sft.model, for example), a Hugging Face tokenizer.json, a folder with "
    "one of them or a hub id; or train one: the step tokenizer.train"
)


class Tokenizer(ABC):
    """Text to token ids and back.

    A text that spells a special token (``</s>``, ``<|im_end|>``) is text: it becomes the ids of its letters. Special
    tokens come from chat templates alone (`encode_template`), or are put in by their ids.

    Attributes:
        path: the file it was read from.
        files: every file it was read from; copied into one folder, they load as the same tokenizer.
        digest: sha256 of those files' contents.
        vocab_size: every id is below it, those of added tokens included.
        bos_id, eos_id, pad_id: ids that begin, end and fill a sequence; None where the tokenizer has none.
        special: spelling to id of the special tokens.
        begin: what is put before a text that a model goes on from: the begin id, unless the tokenizer's files say
            otherwise.
    """

    path: Path
    files: tuple[Path, ...]
    digest: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    special: Mapping[str, int] = MappingProxyType({})
    _begin: tuple[int, ...] | None = None

    @property
    def begin(self) -> tuple[int, ...]:
        if self._begin is not None:
            return self._begin
        return () if self.bos_id is None else (self.bos_id,)

    @begin.setter
    def begin(self, ids: tuple[int, ...] | None) -> None:
        self._begin = ids

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """The ids of a text, with the begin and end id around them if asked for.

        Raises:
            DataError: bos or eos is asked for and the tokenizer has none.
        """
        return self.encode_batch([text], bos=bos, eos=eos)[0]

    def encode_batch(self, texts: Sequence[str], *, bos: bool = False, eos: bool = False) -> list[list[int]]:
        """`encode` for several texts at once, which is faster."""
        begin = [self.required(self.bos_id, "bos")] if bos else []
        end = [self.required(self.eos_id, "eos")] if eos else []
        encoded = self._encode(list(texts))
        for ids in encoded:
            ids[:0] = begin
            ids += end
        return encoded

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens have none.

        Raises:
            DataError: an id is not in the vocabulary.
        """

    @abstractmethod
    def encode_with_offsets(self, text: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of each token of a text: it stands for the characters [start, end).

        Of the tokens that together stand for one character, some may stand for none, at its start or its end.
        """

    def encode_template(self, text: str) -> list[tuple[int, int, int]]:
        """`encode_with_offsets` of a text that a chat template wrote: special tokens spelled in it become their ids.

        As with transformers, those that a message spells do so too.
        """
        return self.encode_with_offsets(text)

    @abstractmethod
    def token_id(self, piece: str) -> int | None:
        """The id of a piece of the vocabulary, as the vocabulary spells it (``<s>``, ``<0x0A>``); None without it."""

    @abstractmethod
    def piece(self, token: int) -> str:
        """How the vocabulary spells an id; the empty text where it has none."""

    @abstractmethod
    def _encode(self, texts: list[str]) -> list[list[int]]: ...

    @property
    def companions(self) -> tuple[Path, ...]:
        """Files beside it that say how its texts are put together, and that go where it goes."""
        beside = (self.path.with_name(name) for name in _COMPANIONS)
        return tuple(file for file in beside if file.is_file())

    def copy_to(self, folder: Path) -> None:
        """Copy its files and their companions into a folder."""
        for file in (*self.files, *self.companions):
            copy_file(file, folder / file.name)

    def required(self, token: int | None, name: str) -> int:
        """The id itself.

        Raises:
            DataError: there is none; its key is the name of the setting that asks for it.
        """
        if token is None:
            raise DataError(f"this tokenizer has no {name} token", file=self.path, key=name, hint=f"set {name}: false")
        return token

    def _known(self, ids: Iterable[int]) -> list[int]:
        ids = [int(i) for i in ids]
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise DataError(f"token id {token} is outside the vocabulary of {self.vocab_size}", file=self.path)
        return ids

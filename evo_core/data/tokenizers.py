"""Tokenizers: SentencePiece models and Hugging Face's ``tokenizer.json``, behind one interface."""

from __future__ import annotations

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evo_core.data.tokenizer_training import train_sentencepiece
from evo_core.errors import DataError
from evo_core.storage.location import is_hub_id, local_path

if TYPE_CHECKING:
    import sentencepiece
    import tokenizers

__all__ = ["Tokenizer", "load_tokenizer", "train_sentencepiece"]

_COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# Data alone: nothing that would be run.
_HUB_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")

_FEW_TEXTS = 64

_WHERE_FROM = (
    "give a SentencePiece .model (InternLM's V7_sft.model, for example), a Hugging Face tokenizer.json, a folder with "
    "one of them or a hub id; or train one: the step tokenizer.train"
)


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        path: the file it was read from.
        files: every file it was read from; copied into one folder, they load as the same tokenizer.
        digest: sha256 of those files' contents.
        vocab_size: every id is below it.
        bos_id, eos_id, pad_id: ids that begin, end and fill a sequence; None where the tokenizer has none.
    """

    path: Path
    files: tuple[Path, ...]
    digest: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """The ids of a text, with the begin and end id around them if asked for.

        Raises:
            DataError: bos or eos is asked for and the tokenizer has none.
        """
        return self.encode_batch([text], bos=bos, eos=eos)[0]

    def encode_batch(self, texts: Sequence[str], *, bos: bool = False, eos: bool = False) -> list[list[int]]:
        """`encode` for several texts at once, which is faster."""
        begin = [self._required(self.bos_id, "bos")] if bos else []
        end = [self._required(self.eos_id, "eos")] if eos else []
        encoded = self._encode(list(texts))
        for ids in encoded:
            ids[:0] = begin
            ids += end
        return encoded

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; begin, end and padding ids have none.

        Raises:
            DataError: an id is not in the vocabulary.
        """

    @abstractmethod
    def encode_with_offsets(self, text: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of each token of a text: it stands for the characters [start, end).

        Of the tokens that together stand for one character, some may stand for none, at its start or its end.
        """

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
        return tuple(file for file in beside if file.is_file() and file not in self.files)

    def copy_to(self, folder: Path) -> None:
        """Copy its files and their companions into a folder."""
        for file in (*self.files, *self.companions):
            shutil.copyfile(file, folder / file.name)

    def _required(self, token: int | None, name: str) -> int:
        if token is None:
            raise DataError(f"this tokenizer has no {name} token", file=self.path, hint=f"set {name}: false")
        return token

    def _known(self, ids: Iterable[int]) -> list[int]:
        ids = [int(i) for i in ids]
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise DataError(f"token id {token} is outside the vocabulary of {self.vocab_size}", file=self.path)
        return ids


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece ``.model`` file."""

    def __init__(self, path: Path) -> None:
        import sentencepiece

        # Errors only: it warns of odd pieces of a published model each time the model is loaded.
        sentencepiece.SetMinLogLevel(2)
        self.path, self.files = path, (path,)
        content = path.read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()
        try:
            self._model: sentencepiece.SentencePieceProcessor = sentencepiece.SentencePieceProcessor(
                model_proto=content
            )
            self.vocab_size = self._model.get_piece_size()
        except RuntimeError:
            self.vocab_size = 0
        if self.vocab_size == 0:
            raise DataError("not a SentencePiece model", file=path, hint=_WHERE_FROM)
        self.bos_id = _id_or_none(self._model.bos_id())
        self.eos_id = _id_or_none(self._model.eos_id())
        self.pad_id = _id_or_none(self._model.pad_id())

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode(self._known(ids))

    def encode_with_offsets(self, text: str) -> list[tuple[int, int, int]]:
        from sentencepiece import sentencepiece_pb2

        serialized = self._model.encode(text, out_type="serialized_proto")
        pieces = sentencepiece_pb2.SentencePieceText.FromString(serialized).pieces  # type: ignore[attr-defined]
        # Its offsets count UTF-8 bytes.
        character, at = {0: 0}, 0
        for number, letter in enumerate(text, 1):
            at += len(letter.encode())
            character[at] = number
        return [(piece.id, character[piece.begin], character[piece.end]) for piece in pieces]

    def token_id(self, piece: str) -> int | None:
        token = self._model.piece_to_id(piece)
        return token if self._model.id_to_piece(token) == piece else None

    def piece(self, token: int) -> str:
        return self._model.id_to_piece(token) if 0 <= token < self.vocab_size else ""

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # A list is encoded in a thread of the library's own; on a busy machine the wait for it is longer than a few
        # texts take. One thread: callers that want more cores run a process for each.
        if len(texts) < _FEW_TEXTS:
            return [self._model.encode(text) for text in texts]
        return self._model.encode(texts, num_threads=1)


class HuggingFaceTokenizer(Tokenizer):
    """A ``tokenizer.json``, with the special tokens that a ``tokenizer_config.json`` beside it names."""

    def __init__(self, path: Path) -> None:
        import tokenizers

        config = path.with_name("tokenizer_config.json")
        self.path = path
        self.files = (path, config) if config.is_file() else (path,)
        self.digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in self.files)).hexdigest()
        try:
            self._model: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"not a Hugging Face tokenizer ({error})", file=path, hint=_WHERE_FROM) from None
        # Whatever it was saved with: texts are taken whole.
        self._model.no_truncation()
        self._model.no_padding()
        self.vocab_size = max(self._model.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        names = _special_names(config) if config.is_file() else {}
        self.bos_id = self._special(names.get("bos_token"), "<s>", "<|begin_of_text|>", "<bos>")
        self.eos_id = self._special(names.get("eos_token"), "</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>")
        self.pad_id = self._special(names.get("pad_token"), "<pad>", "<|pad|>")

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode(self._known(ids), skip_special_tokens=True)

    def encode_with_offsets(self, text: str) -> list[tuple[int, int, int]]:
        encoding = self._model.encode(text, add_special_tokens=False)
        return [(token, *span) for token, span in zip(encoding.ids, encoding.offsets, strict=True)]

    def token_id(self, piece: str) -> int | None:
        return self._model.token_to_id(piece)

    def piece(self, token: int) -> str:
        return self._model.id_to_token(token) or ""

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # Without offsets, which take a third of the time; tokenizers has this since 0.20.
        return [encoding.ids for encoding in self._model.encode_batch_fast(texts, add_special_tokens=False)]

    def _special(self, *names: str | None) -> int | None:
        found = (self._model.token_to_id(name) for name in names if name)
        return next((token for token in found if token is not None), None)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a file, or in a folder with ``tokenizer.json``, ``tokenizer.model`` or one ``*.model``.

    ``tokenizer.json`` goes first where a folder has both: it also holds the tokens added to the model. A hub id
    (``internlm/internlm-7b``) stands for such a folder, of which nothing but the tokenizer's files is fetched, once.

    Raises:
        DataError: nothing is there, or it is no tokenizer.
    """
    if is_hub_id(str(path)):
        path = _fetched(str(path))
    path = local_path(path if isinstance(path, Path) and path.exists() else str(path))
    if path.is_dir():
        path = _file_in(path)
    if not path.is_file():
        raise DataError("there is no tokenizer here", file=path, hint=_WHERE_FROM)
    # By content, since a copy may have been given another name.
    with path.open("rb") as file:
        is_json = file.read(1) == b"{"
    if is_json or path.suffix == ".json":
        return HuggingFaceTokenizer(path)
    return SentencePieceTokenizer(path)


def _fetched(hub_id: str) -> Path:
    """The folder of the hub's cache that holds a repository's tokenizer."""
    hint = f"there is no folder {hub_id} here either; where there is no network, fetch it elsewhere and name its folder"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise DataError(
            "to read from a model hub, the package huggingface_hub is needed",
            file=hub_id,
            hint="pip install 'evo-lm[hf]'",
        ) from None
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # the library has errors of its own, requests' and httpx'
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"this tokenizer cannot be fetched from the hub: {reason}", file=hub_id, hint=hint) from None


def _file_in(folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            return folder / name
    models = sorted(folder.glob("*.model"))
    if len(models) != 1:
        found = ", ".join(model.name for model in models) or "none"
        raise DataError(
            f"expected tokenizer.json, tokenizer.model or one *.model in this folder; *.model: {found}", file=folder
        )
    return models[0]


def _id_or_none(token: int) -> int | None:
    return token if token >= 0 else None


def _special_names(config: Path) -> dict[str, str]:
    """bos_token and the like of a tokenizer_config.json, where a token is a string or {"content": string}."""
    try:
        settings = json.loads(config.read_bytes())
    except ValueError as error:
        raise DataError(f"not JSON ({error})", file=config) from None
    names = {}
    for key in ("bos_token", "eos_token", "pad_token"):
        value = settings.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            names[key] = value
    return names

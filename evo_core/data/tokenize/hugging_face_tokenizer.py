"""Hugging Face's ``tokenizer.json``, with what the files beside it say."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection, Iterable
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evo_core.data.tokenize.tokenizer import WHERE_FROM, Tokenizer
from evo_core.data.tokenize.tokenizer_settings import ADDED, CONFIG, TokenizerSettings, read_settings
from evo_core.errors import DataError

if TYPE_CHECKING:
    import tokenizers


class HuggingFaceTokenizer(Tokenizer):
    """A ``tokenizer.json``, with the special tokens that the files beside it name or add.

    Raises:
        DataError: it is no tokenizer, or a file beside it is damaged.
    """

    def __init__(self, path: Path) -> None:
        import tokenizers

        settings = read_settings(path.parent)
        self.path, self.files = path, (path, *settings.files)
        self.digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in self.files)).hexdigest()
        try:
            self._model: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"not a Hugging Face tokenizer ({error})", file=path, hint=WHERE_FROM) from None
        # Whatever it was saved with: texts are taken whole.
        self._model.no_truncation()
        self._model.no_padding()
        self._add(settings)
        self.vocab_size = max(self._model.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        named = settings.ids(self.token_id)
        self.bos_id = named.get("bos_token", self._first("<s>", "<|begin_of_text|>", "<bos>"))
        self.eos_id = named.get("eos_token", self._first("</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>"))
        self.pad_id = named.get("pad_token", self._first("<pad>", "<|pad|>"))
        own = [self.piece(token) for token in (self.bos_id, self.eos_id, self.pad_id) if token is not None]
        self.special = _make_special(self._model, [*own, *settings.special])
        self._model.encode_special_tokens = True
        spelled = _spelled_out(self._model, self.special)
        self._text = self._model if spelled is None else _read(spelled, encode_special_tokens=True)
        self.begin = _put_before(self._model)

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode(self._known(ids), skip_special_tokens=True)

    def encode_with_offsets(self, text: str) -> list[tuple[int, int, int]]:
        return _with_offsets(self._text, text)

    def encode_template(self, text: str) -> list[tuple[int, int, int]]:
        return _with_offsets(self._template, text)

    def token_id(self, piece: str) -> int | None:
        return self._model.token_to_id(piece)

    def piece(self, token: int) -> str:
        return self._model.id_to_token(token) or ""

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # Without offsets, which take a third of the time; tokenizers has this since 0.20.
        return [encoding.ids for encoding in self._text.encode_batch_fast(texts, add_special_tokens=False)]

    @cached_property
    def _template(self) -> tokenizers.Tokenizer:
        """One that finds special tokens in a text. A second one, as the setting cannot change while others encode."""
        return _read(self._model.to_str(), encode_special_tokens=False)

    def _first(self, *names: str) -> int | None:
        found = map(self.token_id, names)
        return next((token for token in found if token is not None), None)

    def _add(self, settings: TokenizerSettings) -> None:
        """Add the tokens that `tokenizer.json` lacks.

        Raises:
            DataError: an added token cannot have the id that is stated for it.
        """
        from tokenizers import AddedToken

        for token in settings.added:
            flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
            if self.token_id(token.content) is None:
                added = AddedToken(token.content, special=token.special, normalized=False, **flags)
                (self._model.add_special_tokens if token.special else self._model.add_tokens)([added])
            if (found := self.token_id(token.content)) != token.id:
                raise DataError(
                    f"{token.content!r} has the id {token.id} here and {found} in {self.path.name}",
                    file=next(file for file in settings.files if file.name in (CONFIG, ADDED)),
                    key="added_tokens_decoder",
                    hint="these files are not of one tokenizer",
                )


def _make_special(model: tokenizers.Tokenizer, names: Iterable[str]) -> dict[str, int]:
    """Let those of these tokens that there are be special ones; returns all special tokens with their ids."""
    from tokenizers import AddedToken

    known = {token.content for token in model.get_added_tokens_decoder().values() if token.special}
    new = [name for name in names if name not in known and model.token_to_id(name) is not None]
    model.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in new])
    return {token.content: i for i, token in model.get_added_tokens_decoder().items() if token.special}


def _spelled_out(model: tokenizers.Tokenizer, special: Collection[str]) -> str | None:
    """The tokenizer as JSON, with special tokens under names that no text holds; None where its model finds none.

    ``encode_special_tokens`` keeps added tokens from being found. Where a special token is a piece of the model as
    well, its algorithm may come to it by itself: Unigram and WordLevel always do, BPE if its merges lead there.
    """
    unknown = _unknown(model)
    names = {*special, unknown} if unknown is not None else {*special}
    # A single letter is spelled by itself.
    inside = {name for name in names if len(name) > 1 and model.model.token_to_id(name) is not None}
    if not inside:
        return None
    content: dict[str, Any] = json.loads(model.to_str())
    part = content["model"]
    by_merges = part.get("type") == "BPE" and not part.get("ignore_merges")
    if by_merges and not any("".join(_pair(merge)) in inside for merge in part["merges"]):
        return None
    # Where a name is changed everywhere, ids stay as they are.
    prefix = secrets.token_hex(16)
    renamed = {name: prefix + name for name in inside}
    if isinstance(part["vocab"], dict):
        part["vocab"] = {renamed.get(piece, piece): token for piece, token in part["vocab"].items()}
    else:
        part["vocab"] = [[renamed.get(piece, piece), score] for piece, score in part["vocab"]]
    if "merges" in part:
        pairs = map(_pair, part["merges"])
        part["merges"] = [pair for pair in pairs if inside.isdisjoint((*pair, "".join(pair)))]
    if part.get("unk_token") in renamed:
        part["unk_token"] = renamed[part["unk_token"]]
    for token in content["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    return json.dumps(content)


def _unknown(model: tokenizers.Tokenizer) -> str | None:
    """The piece that stands for what the vocabulary lacks."""
    from tokenizers import models

    if not isinstance(model.model, models.Unigram):
        return getattr(model.model, "unk_token", None)
    number = json.loads(model.to_str())["model"]["unk_id"]
    return None if number is None else model.model.id_to_token(number)


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _read(content: str, *, encode_special_tokens: bool) -> tokenizers.Tokenizer:
    import tokenizers

    model = tokenizers.Tokenizer.from_str(content)
    model.encode_special_tokens = encode_special_tokens
    return model


def _with_offsets(model: tokenizers.Tokenizer, text: str) -> list[tuple[int, int, int]]:
    encoding = model.encode(text, add_special_tokens=False)
    return [(token, *span) for token, span in zip(encoding.ids, encoding.offsets, strict=True)]


def _put_before(model: tokenizers.Tokenizer) -> tuple[int, ...]:
    """What its post-processor puts before a text."""
    try:
        encoding = model.encode("a")
    except Exception:  # plain ones: some vocabularies have no "a", and nothing that stands for what they lack
        return ()
    marks = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    return tuple(token for token, _ in takewhile(lambda mark: mark[1], marks))

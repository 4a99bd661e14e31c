"""SentencePiece models, with the tokens that the files beside them add."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evo_core.data.tokenize.tokenizer import WHERE_FROM, Tokenizer
from evo_core.data.tokenize.tokenizer_settings import AddedToken, read_settings
from evo_core.errors import DataError

if TYPE_CHECKING:
    import sentencepiece

_FEW_TEXTS = 64
_CONTROL = 3  # of SentencePiece's types of pieces


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece ``.model`` file.

    The library does not look for control pieces in a text, and knows neither tokens that were added to its vocabulary
    nor names that were given to pieces of it: where such a token is to be found, the text is cut at it.
    """

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        self._model = _load(content, path)
        settings = read_settings(path.parent)
        self._legacy = settings.legacy
        self.path, self.files = path, (path, *settings.files)
        self.digest = hashlib.sha256(b"\0".join([content, *(f.read_bytes() for f in settings.files)])).hexdigest()
        self._pieces = self._model.get_piece_size()
        self._added = {token.id: token for token in settings.added if self._piece(token.id) != token.content}
        self._added_ids = {token.content: token.id for token in self._added.values()}
        self.vocab_size = max([self._pieces - 1, *self._added]) + 1

        named = settings.ids(self.token_id)
        own = {"bos": self._model.bos_id(), "eos": self._model.eos_id(), "pad": self._model.pad_id()}
        self.bos_id, self.eos_id, self.pad_id = (
            named.get(f"{name}_token", token if token >= 0 else None) for name, token in own.items()
        )
        begins = settings.add_bos is not False and not settings.denies("bos_token")
        self.begin = None if begins else ()

        every = list(range(self._pieces))  # asked at once: call by call a large vocabulary takes most of the loading
        marks = zip(self._model.is_control(every), self._model.is_unknown(every), strict=True)
        control = (token for token, mark in enumerate(marks) if any(mark))
        spelled = {name: self.token_id(name) for name in (*map(self._piece, control), *settings.special)}
        self.special = {name: token for name, token in spelled.items() if token is not None}
        self._special_ids = frozenset(self.special.values())
        if hidden := {token for token in (*self._special_ids, *self._added) if self._is_found(token)}:
            self._model = _load(_as_control(content, hidden), path)
        flags = {token.content: token for token in settings.added}
        special = [flags.get(name, AddedToken(token, name)) for name, token in self.special.items()]
        others = [token for token in self._added.values() if token.content not in self.special]
        self._in_text, self._in_template = _Cut(others), _Cut([*special, *others])

    def decode(self, ids: Iterable[int]) -> str:
        known = [token for token in self._known(ids) if token not in self._special_ids]
        text = ""
        for number, (is_added, run) in enumerate(groupby(known, key=self._added.__contains__)):
            text += "".join(map(self.piece, run)) if is_added else self._at(number).decode(list(run))
        return text

    def encode_with_offsets(self, text: str) -> list[tuple[int, int, int]]:
        return self._encode_parts(text, self._in_text)

    def encode_template(self, text: str) -> list[tuple[int, int, int]]:
        return self._encode_parts(text, self._in_template)

    def _encode_parts(self, text: str, cut: _Cut) -> list[tuple[int, int, int]]:
        tokens: list[tuple[int, int, int]] = []
        for token, start, end in cut.parts(text):
            if token is not None:
                tokens.append((token, start, end))
            else:
                pieces = _offsets(self._at(start), text[start:end])
                tokens.extend((piece, start + at, start + to) for piece, at, to in pieces)
        return tokens

    def token_id(self, piece: str) -> int | None:
        if (added := self._added_ids.get(piece)) is not None:
            return added
        token = self._model.piece_to_id(piece)
        return token if self._piece(token) == piece and token not in self._added else None

    def piece(self, token: int) -> str:
        added = self._added.get(token)
        return self._piece(token) if added is None else added.content

    def _piece(self, token: int) -> str:
        return self._model.id_to_piece(token) if 0 <= token < self._pieces else ""

    def _is_found(self, token: int) -> bool:
        """Whether the library cuts texts into this piece, though it stands for more than its letters."""
        if len(self._piece(token)) < 2:
            return False
        return not (self._model.is_control(token) or self._model.is_unknown(token) or self._model.is_byte(token))

    def _at(self, start: int) -> sentencepiece.SentencePieceProcessor:
        """The model for the part of a text that starts there."""
        return self._model if start == 0 else self._behind

    @cached_property
    def _behind(self) -> sentencepiece.SentencePieceProcessor:
        """The model for text behind a token: where it puts a space before a text, that stands at its start alone."""
        from sentencepiece import sentencepiece_model_pb2

        proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        proto.ParseFromString(self._model.serialized_model_proto())
        rules = proto.normalizer_spec
        # One that takes white space away has no other mark for the space behind a token.
        if self._legacy or not rules.add_dummy_prefix or rules.remove_extra_whitespaces:
            return self._model
        rules.add_dummy_prefix = False
        return _load(proto.SerializeToString(), self.path)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if self._in_text:
            return [self._encode_cut(text) for text in texts]
        # A list is encoded in a thread of the library's own; on a busy machine the wait for it is longer than a few
        # texts take. One thread: callers that want more cores run a process for each.
        if len(texts) < _FEW_TEXTS:
            return [self._model.encode(text) for text in texts]
        return self._model.encode(texts, num_threads=1)

    def _encode_cut(self, text: str) -> list[int]:
        ids: list[int] = []
        for token, start, end in self._in_text.parts(text):
            ids += self._at(start).encode(text[start:end]) if token is None else [token]
        return ids


class _Cut:
    """Finds tokens in a text; false where there are none to find."""

    def __init__(self, tokens: Collection[AddedToken]) -> None:
        self._ids = {token.content: token.id for token in tokens}
        longest_first = sorted(tokens, key=lambda token: len(token.content), reverse=True)
        self._pattern = re.compile("|".join(map(_pattern, longest_first)))

    def __bool__(self) -> bool:
        return bool(self._ids)

    def parts(self, text: str) -> Iterator[tuple[int | None, int, int]]:
        """(id, start, end) of each token, and (None, start, end) of the text between; nothing of an empty text."""
        at = 0
        for found in self._pattern.finditer(text) if self._ids else ():
            if found.start() > at:
                yield None, at, found.start()
            yield self._ids[next(group for group in found.groups() if group is not None)], found.start(), found.end()
            at = found.end()
        if at < len(text):
            yield None, at, len(text)


def _pattern(token: AddedToken) -> str:
    pattern = f"({re.escape(token.content)})"
    if token.single_word:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return (r"\s*" if token.lstrip else "") + pattern + (r"\s*" if token.rstrip else "")


def _offsets(model: sentencepiece.SentencePieceProcessor, text: str) -> list[tuple[int, int, int]]:
    """(id, start, end) of each piece of a text."""
    from sentencepiece import sentencepiece_pb2

    serialized = model.encode(text, out_type="serialized_proto")
    pieces = sentencepiece_pb2.SentencePieceText.FromString(serialized).pieces  # type: ignore[attr-defined]
    # Its offsets count UTF-8 bytes.
    character, at = {0: 0}, 0
    for number, letter in enumerate(text, 1):
        at += len(letter.encode())
        character[at] = number
    return [(piece.id, character[piece.begin], character[piece.end]) for piece in pieces]


def _load(content: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    import sentencepiece

    # Errors only: it warns of odd pieces of a published model each time the model is loaded.
    sentencepiece.SetMinLogLevel(2)
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        if model.get_piece_size() > 0:
            return model
    except RuntimeError:
        pass
    raise DataError("not a SentencePiece model", file=path, hint=WHERE_FROM)


def _as_control(content: bytes, ids: Collection[int]) -> bytes:
    """The model with these pieces as control pieces, which no text is cut into.

    A chat model's ``<|im_end|>`` may be a user-defined piece of its model, as such or as ``[UNUSED_TOKEN_145]``: the
    library would find it in any text.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(content)
    for token in ids:
        proto.pieces[token].type = _CONTROL
    return proto.SerializeToString()

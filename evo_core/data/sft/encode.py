"""A record's pieces to the ids of one sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evo_core.data.raw.json_value import HALF_CHARACTER, is_whole
from evo_core.data.sft.pieces import Format, NoRoomError, Piece, RecordError
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import code_error


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        ids: token ids, negative where they are read and not trained on.
        trained: how many are trained on.
        cut: whether it was longer.
    """

    ids: list[int]
    trained: int
    cut: bool


class SampleEncoder:
    """Encodes records of one format.

    Attributes:
        tokenizer: what the ids are of.
        note: what a person should know about the format; may be empty.

    Args:
        max_length: samples are cut to as many ids, an end id included. Where the cut falls the text does not end, so
            no end id is put there (but see `Format.end_of_cut`).
        bos, eos: whether begin and end ids stand around a sample; None leaves it to the format.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        record_format: Format,
        *,
        max_length: int,
        bos: bool | None = None,
        eos: bool | None = None,
    ) -> None:
        self.tokenizer, self.note = tokenizer, record_format.note
        self._format, self._max_length = record_format, max_length
        bos = record_format.bos if bos is None else bos
        eos = record_format.eos if eos is None else eos
        # An empty text with its marks around it: which says what to do where the tokenizer has none.
        self._begin = tokenizer.encode("", bos=True)[:1] if bos else []
        self._end = tokenizer.encode("", eos=True)[-1:] if eos else []

    def encode(self, record: Any) -> Sample:
        """The sample of a record.

        Raises:
            NoRoomError: what is before the first answer fills the length.
            RecordError: the record does not fit the format, nothing of it is trained on, or an id 0 would have to
                be marked as not trained on, which -0 cannot say.
        """
        (found,) = self.encode_batch([record])
        if isinstance(found, RecordError):
            raise found
        return found

    def encode_batch(self, records: Sequence[Any]) -> list[Sample | RecordError]:
        """`encode` for several records at once, which is faster; errors stand instead of their samples."""
        pieces = [self._pieces(record) for record in records]
        good = [found for found in pieces if not isinstance(found, RecordError)]
        samples = iter(self._samples(good))
        return [found if isinstance(found, RecordError) else next(samples) for found in pieces]

    def _pieces(self, record: Any) -> Sequence[Piece] | RecordError:
        if not isinstance(record, dict):
            return RecordError(f"expected an object, not {type(record).__name__}")
        try:
            pieces = checked(self._format.pieces(record), self._format.name)
        except RecordError as error:
            return error
        except (Exception, SystemExit) as error:  # a format is a user's function, or runs a user's template
            return RecordError(f"{self._format.name} failed: {code_error(error)}")
        if not any(trained and len(content) for content, trained in pieces):
            return RecordError(_NOTHING)
        size = self.tokenizer.vocab_size
        for content, _ in pieces:
            if isinstance(content, str):
                if not is_whole(content):
                    return RecordError(f"it holds {HALF_CHARACTER}")
            elif wrong := [token for token in content if not 0 <= token < size]:
                return RecordError(f"{wrong[0]} is no id of the vocabulary of {size}")
        return pieces

    def _samples(self, records: Sequence[Sequence[Piece]]) -> list[Sample | RecordError]:
        """The samples of records' pieces; a record that the tokenizer fails on does not spoil the others."""
        try:
            if self._format.as_one_text:
                return [self._sample(self._as_one_text(pieces)) for pieces in records]
            return [self._sample(parts) for parts in self._encoded(records)]
        except Exception as error:  # each tokenizer's library has errors of its own
            if len(records) == 1:
                return [RecordError(f"the tokenizer failed: {code_error(error)}")]
            return [sample for pieces in records for sample in self._samples([pieces])]

    def _sample(self, parts: Iterable[tuple[list[int], bool]]) -> Sample | RecordError:
        """The sample of ids that are trained on and ids that are not."""
        ids, answer = list(self._begin), 0
        for part, trained in parts:
            if trained:
                ids += part
                answer += len(part)
            elif 0 in part:
                piece = self.tokenizer.piece(0)
                return RecordError(
                    f"the prompt holds token id 0 ({piece!r}), which no minus can mark as not trained on"
                )
            else:
                ids += [-token for token in part]
        if not answer:
            return RecordError(_NOTHING)
        if len(ids) + len(self._end) > self._max_length:
            return self._cut(ids)
        ids += self._end
        return Sample(ids, _trained(ids), cut=False) if _has_target(ids) else RecordError(_NOTHING)

    def _cut(self, ids: list[int]) -> Sample | RecordError:
        ids = ids[: self._max_length - len(self._end)]
        if not _has_target(ids):
            return NoRoomError(f"its prompt leaves no room for an answer in {self._max_length} tokens")
        if self._format.end_of_cut and ids[-1] >= 0:
            ids += self._end
        return Sample(ids, _trained(ids), cut=True)

    def _encoded(self, samples: Sequence[Sequence[Piece]]) -> Iterator[list[tuple[list[int], bool]]]:
        """The ids of each piece, tokenized by itself."""
        # All texts go through the tokenizer together.
        texts = [content for pieces in samples for content, _ in pieces if isinstance(content, str)]
        ids = iter(self.tokenizer.encode_batch(texts))
        for pieces in samples:
            yield [(next(ids) if isinstance(content, str) else list(content), trained) for content, trained in pieces]

    def _as_one_text(self, pieces: Sequence[Piece]) -> Iterator[tuple[list[int], bool]]:
        """One text, as a template wrote it; a token that reaches over the edge of a trained piece is trained on."""
        spans, at = [], 0
        for content, trained in pieces:
            if trained:
                spans.append((at, at + len(content)))
            at += len(content)
        text = "".join(content for content, _ in pieces if isinstance(content, str))
        number = 0
        for token, start, end in self.tokenizer.encode_template(text):
            while number < len(spans) and spans[number][1] <= start:
                number += 1
            yield [token], number < len(spans) and (spans[number][0] < end or spans[number][0] <= start)


_NOTHING = "nothing of it is trained on"


def _has_target(ids: Sequence[int]) -> bool:
    """Whether there is a token to learn: the first of a sample has none before it that it could be learnt from."""
    return any(token >= 0 for token in ids[1:])


def _trained(ids: Sequence[int]) -> int:
    return sum(token >= 0 for token in ids)


def checked(pieces: Any, name: str) -> Sequence[Piece]:
    """What a format gave, if it is a list of pieces.

    Raises:
        RecordError: it is something else.
    """
    if not isinstance(pieces, list | tuple):
        raise RecordError(f"{name} gave {_shown(pieces)}, not a list of (text, trained) pairs")
    for piece in pieces:
        if (
            not isinstance(piece, list | tuple)
            or len(piece) != 2
            or not isinstance(piece[0], str | list | tuple)
            or not isinstance(piece[1], bool)
        ):
            raise RecordError(f"{name} gave {_shown(piece)}, not a pair (text, trained)")
        if not isinstance(piece[0], str) and not all(type(token) is int for token in piece[0]):
            raise RecordError(f"{name} gave {_shown(piece[0])}, not a text or a list of ids")
    return pieces


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"

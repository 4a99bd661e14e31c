"""What a record's format makes of it: pieces of text, some to be trained on.

A format is a function from a record (a JSON object, a row of a table) to pieces, in the order in which the model reads
them::

    def dialogue(record: dict) -> list[tuple[str, bool]]:
        return [(f"Question: {record['question']}\\nAnswer:", False), (" " + record["answer"], True)]

A piece is ``(text, trained)``. The model reads all of it and learns to write what is trained. In place of a text
there may be a list of token ids: a text that spells a special token (``<|im_end|>``) is text, so that what a record
says cannot end a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Piece = tuple[str | Sequence[int], bool]
PieceFunction = Callable[[dict[str, Any]], Sequence[Piece]]


class RecordError(Exception):
    """What is wrong with one record; whoever reads the file adds where it stands."""


class NoRoomError(RecordError):
    """A record that is right, and whose prompt is so long that nothing of an answer is left."""


@dataclass(frozen=True)
class Format:
    """How records become samples.

    Attributes:
        name: as in ``--format``.
        pieces: record to pieces.
        as_one_text: whether the pieces' texts are a chat template's: tokenized as one text, in which special tokens
            become their ids; else each is tokenized by itself, as text alone.
        bos, eos: whether a sample begins with the begin id and ends with the end id, unless told otherwise.
        end_of_cut: whether a sample that is cut inside an answer ends with the end id all the same; else it just stops,
            since the answer does not end there.
        note: what a person should know about it, in a line; may be empty.
    """

    name: str
    pieces: PieceFunction
    as_one_text: bool = False
    bos: bool = True
    eos: bool = True
    end_of_cut: bool = False
    note: str = ""


def text_field(record: dict[str, Any], key: str, *, default: str | None = None) -> str:
    """A field that must be text; with a default it may be missing or null.

    Raises:
        RecordError: it is missing, or no text.
    """
    value = record.get(key, default)
    if value is None:
        value = default
    if value is None:
        fields = ", ".join(map(repr, list(record)[:8])) or "none"
        raise RecordError(f"there is no field {key!r} (its fields: {fields})")
    if not isinstance(value, str):
        raise RecordError(f"the field {key!r} is not text")
    return value


_MEDIA = ("images", "image", "videos", "video", "audios", "audio")


def check_fields(record: dict[str, Any]) -> None:
    """Refuse a record with fields that nobody reads here and without which it says another thing.

    Raises:
        RecordError: it is about a picture or a sound, or it is marked as an answer not to give.
    """
    if media := next((key for key in _MEDIA if record.get(key)), None):
        raise RecordError(f"it comes with the field {media!r}, and only text is trained on")
    if record.get("kto_tag") is False:
        raise RecordError("it is marked as a wrong answer (kto_tag: false), which nothing here learns from")

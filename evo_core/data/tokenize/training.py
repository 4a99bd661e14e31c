"""Training a SentencePiece tokenizer that gives every text back exactly."""

from __future__ import annotations

import io
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from evo_core.errors import DataError
from evo_core.storage.files import write_file

SAMPLE_BYTES = 32 << 20

# A line longer than this is cut: SentencePiece leaves out long sentences, and its time grows with them.
_PIECE_CHARACTERS = 1000
_BYTE_PIECES = 256
_UNK, _BOS, _EOS = 0, 1, 2
_NEWLINE = "\n"


def train_sentencepiece(
    texts: Iterable[str],
    out: str | Path,
    *,
    vocab_size: int,
    model_type: Literal["bpe", "unigram"] = "bpe",
    character_coverage: float | None = None,
    user_symbols: Sequence[str] = (),
    sample_bytes: int = SAMPLE_BYTES,
) -> Path:
    """Train a tokenizer on texts and write its ``.model``; the same texts give the same bytes.

    Nothing is normalized, white space is kept as it is (runs of spaces become tokens of their own, a newline
    is one), and what is not in the alphabet falls back to its UTF-8 bytes. So ``decode(encode(text)) == text``
    for every text without U+2581, which SentencePiece itself uses for the space. Ids: unk 0, bos 1, eos 2,
    newline and `user_symbols` from 3, then the 256 bytes, then what was learnt.

    Args:
        texts: documents; each is read once.
        out: the ``.model`` file, complete when it is there.
        vocab_size: ids in all.
        model_type: ``bpe`` trains 25 times as fast as ``unigram`` and makes as few tokens, within 3 %.
        character_coverage: share of the characters that get an id of their own. By default as many as fit
            into 3/8 of the vocabulary, up to a share of 0.9999: Chinese has thousands of rare characters,
            which would leave a small vocabulary no room for words.
        user_symbols: texts that are always one token.
        sample_bytes: size of the sample of lines that is trained on, drawn with a fixed seed.

    Raises:
        DataError: the texts are too few, or the vocabulary too small for its fixed part.
    """
    out = Path(out)
    symbols = [_NEWLINE, *(symbol for symbol in user_symbols if symbol != _NEWLINE)]
    fixed = 3 + len(symbols) + _BYTE_PIECES
    if vocab_size < fixed + 16:
        raise DataError(
            f"vocab_size {vocab_size} is too small: {fixed} ids are bytes and special symbols",
            key="vocab_size",
            hint=f"set it to {fixed + 16} or more",
        )
    lines = _sample(_pieces(texts), sample_bytes)
    if not lines:
        raise DataError("there is no text to train a tokenizer on")
    room = vocab_size - fixed
    alphabet = _alphabet(lines, character_coverage, min(vocab_size * 3 // 8, room - 8))
    if len(alphabet) >= room:
        raise DataError(
            f"vocab_size {vocab_size} has no room for the {len(alphabet)} characters that character_coverage "
            f"{character_coverage} asks for",
            key="vocab_size",
            hint="lower character_coverage or raise vocab_size",
        )
    model = _trained(_cut_at_others(lines, alphabet), vocab_size=vocab_size, model_type=model_type, symbols=symbols)
    write_file(out, model)
    return out


def _trained(sentences: Iterator[str], *, vocab_size: int, model_type: str, symbols: list[str]) -> bytes:
    """The model that SentencePiece makes of sentences."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            character_coverage=1.0,
            user_defined_symbols=symbols,
            unk_id=_UNK,
            bos_id=_BOS,
            eos_id=_EOS,
            pad_id=-1,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            # With one thread nothing depends on the order in which threads finish.
            num_threads=1,
            max_sentence_length=4 * _PIECE_CHARACTERS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, vocab_size) from None
    return model.getvalue()


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """The lines of the texts without their newlines, long ones cut."""
    for text in texts:
        for line in text.split(_NEWLINE):
            # SentencePiece drops sentences with a NUL; it is a byte to the tokenizer in any case.
            line = line.replace("\0", "")
            for start in range(0, len(line), _PIECE_CHARACTERS):
                yield line[start : start + _PIECE_CHARACTERS]


def _sample(pieces: Iterable[str], sample_bytes: int) -> list[str]:
    """All pieces, or a uniform sample of about `sample_bytes` in their order, holding twice that at most.

    Each piece draws a number; whenever too much is held, the larger half of the range is given up.
    """
    draw = random.Random(0).random
    kept: list[tuple[float, str]] = []
    size, limit = 0, 1.0
    for piece in pieces:
        number = draw()
        if number >= limit:
            continue
        kept.append((number, piece))
        size += len(piece.encode())
        if size > 2 * sample_bytes:
            limit /= 2
            kept = [entry for entry in kept if entry[0] < limit]
            size = sum(len(text.encode()) for _, text in kept)
    if size > sample_bytes:
        limit *= sample_bytes / size
    return [piece for number, piece in kept if number < limit]


def _alphabet(lines: list[str], coverage: float | None, most: int) -> set[str]:
    """The most frequent characters: up to `coverage` of all, or by default the `most` up to a share of 0.9999."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    left = counts.total() * (0.9999 if coverage is None else coverage)
    alphabet: set[str] = set()
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if left <= 0 or (coverage is None and len(alphabet) == most):
            break
        alphabet.add(character)
        left -= count
    return alphabet


def _cut_at_others(lines: list[str], alphabet: set[str]) -> Iterator[str]:
    """The lines in parts that hold characters of the alphabet alone.

    SentencePiece can leave out rare characters by itself, but not more than one in fifty.
    """
    others = dict.fromkeys((ord(c) for line in lines for c in set(line) if c not in alphabet), _NEWLINE)
    for line in lines:
        yield from filter(None, line.translate(others).split(_NEWLINE))


def _explained(error: RuntimeError, vocab_size: int) -> DataError:
    """SentencePiece's failure in the user's terms."""
    if limit := re.search(r"set it to a value <= (\d+)", str(error)):
        return DataError(
            f"the texts are too few for a vocabulary of {vocab_size}; {limit[1]} is the largest possible",
            key="vocab_size",
            hint="lower vocab_size or give more text",
        )
    return DataError(f"the tokenizer cannot be trained: {error}")

"""A SentencePiece model as a ``tokenizer.json``, checked on texts before it is believed.

transformers reads a bare ``tokenizer.model`` as Llama's, with a space put before each text; a model that was trained
without that (ours are) would silently get other ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_UNIGRAM, _BPE = 1, 2
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_PROBES = (
    "The quick brown fox, 1234567 times over: don't stop!",
    "  two  spaces, a\ttab and\n\nlines \n",
    "def f(x: int) -> int:\n    return x ** 2  # 3.14",
    "桃园三结义，天下大势，分久必合。 日本語 한국어 Ünïcödé ａｂｃ",
    "\N{GRINNING FACE} \N{LATIN SMALL LETTER E}\N{COMBINING ACUTE ACCENT} \x00 \u200b end",
    "",
    " ",
)


def as_tokenizer_json(model: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer of a SentencePiece ``.model`` file; None where it would not give the same ids."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model.read_bytes())
    if proto.trainer_spec.model_type not in (_UNIGRAM, _BPE):
        return None
    result = _translated(proto)
    original = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    pieces = [piece.piece for piece in proto.pieces if piece.type in (_NORMAL, _USER_DEFINED)]
    words = "".join(pieces[:: max(len(pieces) // 2000, 1)]).replace(_SPACE, " ")
    for text in (*_PROBES, words):
        if result.encode(text, add_special_tokens=False).ids != original.encode(text):
            return None
    return result


def _translated(proto: Any) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    trainer, rules = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type == _BPE:
        vocab = {_name(piece.piece): number for number, piece in enumerate(proto.pieces)}
        merges = list(_merges(proto))
        unknown, fallback = proto.pieces[trainer.unk_id].piece, trainer.byte_fallback
        result = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback))
    else:
        scored = [(piece.piece, piece.score) for piece in proto.pieces]
        result = Tokenizer(models.Unigram(scored, trainer.unk_id, trainer.byte_fallback))
    steps: list[Any] = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(" {2,}", " ")]
    result.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    if rules.add_dummy_prefix:
        result.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
    strip = [decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else []
    result.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    for kind in (_CONTROL, _USER_DEFINED):
        tokens = [
            AddedToken(p.piece, normalized=False, special=kind == _CONTROL) for p in proto.pieces if p.type == kind
        ]
        (result.add_special_tokens if kind == _CONTROL else result.add_tokens)(tokens)
    if trainer.bos_id >= 0:
        begin = proto.pieces[trainer.bos_id].piece
        result.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, trainer.bos_id)]
        )
    return result


def _name(piece: str) -> str:
    """The piece, but for NUL: SentencePiece takes its byte where a model has both. No merge leads to this name."""
    return piece * 2 if piece == "\0" else piece


def _merges(proto: Any) -> Iterator[tuple[str, str]]:
    """Which two pieces become one, the best piece first: SentencePiece itself keeps only the pieces' scores."""
    pieces = [(-piece.score, number, piece.piece) for number, piece in enumerate(proto.pieces) if piece.type == _NORMAL]
    known = {piece: number for _, number, piece in pieces}
    for _, _, piece in sorted(pieces):
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        both = [(left, right) for left, right in splits if left in known and right in known]
        yield from sorted(both, key=lambda pair: (known[pair[0]], known[pair[1]]))

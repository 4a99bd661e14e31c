"""Text in pieces is the text as a whole, also where a character takes several tokens."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece
from evo_core.errors import DataError
from evo_core.generate import generate, stream
from evo_core.generate.streaming import TextStream
from tests.generate.models import LetterTokenizer, decoder

TEXT = "却说曹操 said: “naïve” 🙂🙃 — the cat  sat\n on the mat. 滚滚长江东逝水 ok"


@pytest.fixture(scope="module", params=["sentencepiece bytes", "byte level", "byte fallback"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Tokenizers that know few characters, and so write most of the text's in bytes."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    plain = ["the cat sat on the mat", "a cat is a cat", "the word is the word"]
    if request.param == "sentencepiece bytes":
        return load_tokenizer(train_sentencepiece(plain * 5, folder / "bytes.model", vocab_size=300))
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if request.param == "byte level":
        model = Model(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        model.train_from_iterator(plain, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    else:  # as Llama's
        pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
        model = Model(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
        model.pre_tokenizer = pre_tokenizers.Metaspace()
        model.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    model.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder / "tokenizer.json")


def test_pieces_make_up_the_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert len(ids) > len(TEXT)  # characters of several tokens
    for cut in range(len(ids)):
        text = TextStream(tokenizer, ids[:cut])
        pieces = [text.push(token) for token in ids[cut:]]
        assert not any("\ufffd" in piece for piece in pieces)
        # A prompt that ends within a character leaves that character to the continuation.
        clean = next(k for k in range(cut, -1, -1) if not tokenizer.decode(ids[:k]).endswith("\ufffd"))
        whole, before = tokenizer.decode(ids), tokenizer.decode(ids[:clean])
        assert "".join(pieces) + text.finish() == whole[len(before) :]


def test_a_piece_comes_as_soon_as_it_is_certain(tokenizer: Tokenizer) -> None:
    text = TextStream(tokenizer, tokenizer.encode("the"))
    for token in tokenizer.encode("the cat sat")[len(tokenizer.encode("the")) :]:
        assert text.push(token)


def test_bytes_that_never_become_a_character_come_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a 🙂")[:-1]
    text = TextStream(tokenizer)
    pieces = [text.push(token) for token in ids]
    assert "".join(pieces).strip() == "a"
    assert set(text.finish().strip()) == {"\ufffd"}


@pytest.mark.parametrize("settings", [{}, {"do_sample": False}, {"top_p": 0.9, "repetition_penalty": 1.3}])
def test_a_stream_is_the_text_of_generate(settings: dict) -> None:
    model, letters = decoder(), LetterTokenizer()
    for seed in range(5):
        options = {"max_new_tokens": 25, "seed": seed, **settings}
        pieces = list(stream(model, letters, "the cat", **options))
        assert "".join(pieces) == generate(model, letters, ["the cat"], **options)[0].text
        assert all(len(piece) == 1 for piece in pieces)


def test_random_tokens_of_a_real_tokenizer(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    for _ in range(100):
        ids = [rng.randrange(3, tokenizer.vocab_size) for _ in range(30)] + tokenizer.encode("the cat")
        text = TextStream(tokenizer, ids[:5])
        told = "".join(text.push(token) for token in ids[5:]) + text.finish()
        assert told.endswith("cat")


def test_mistakes_are_told_when_it_is_called() -> None:
    with pytest.raises(DataError, match="needs a tokenizer"):
        stream(decoder(), None, [3])  # type: ignore[arg-type]
    assert list(stream(decoder(), LetterTokenizer(), "the cat", max_length=3)) == []

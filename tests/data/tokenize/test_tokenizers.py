"""Tokenizers give texts back exactly, are trained the same twice, and match the published ids."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece
from evo_core.data.tokenize.training import _sample
from evo_core.errors import DataError
from tests.data.corpora import CHINESE, CODE, ENGLISH, texts

PUBLISHED = [
    [73075, 75302, 69522, 69022, 98899, 67713, 68015, 81269, 74637, 75445, 99157],
    [69469, 60355, 73026, 68524, 60846, 61844, 98899, 67775, 79241, 98899, 67713, 67800, 67453, 67838, 99157],
    [68057, 79017, 60378, 68014, 98899, 67713, 67990, 68015, 70381, 67428, 61003, 67622, 99157],
]


@pytest.mark.parametrize(
    "text",
    [
        CHINESE,
        ENGLISH,
        CODE,
        "",
        "\n",
        "  \n\t\n ",
        "\r\n\0",
        "  leading and trailing  ",
        "鱻 😀 \u3000é",
        "<s></s><unk><0x0A>",
    ],
)
def test_texts_come_back_exactly(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, bos=True, eos=True)) == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_and_batches(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (600, 1, 2, None)
    plain = tokenizer.encode(ENGLISH)
    assert tokenizer.encode(ENGLISH, bos=True, eos=True) == [1, *plain, 2]
    assert tokenizer.encode_batch([ENGLISH, CODE]) == [plain, tokenizer.encode(CODE)]
    assert max(plain) < 600
    assert len(tokenizer.encode("    ")) == 1, "indentation is one token"


def test_the_same_texts_give_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = train_sentencepiece(texts(), tmp_path / "again.model", vocab_size=600)
    assert again.read_bytes() == tokenizer.path.read_bytes()
    assert tokenizer.digest == hashlib.sha256(again.read_bytes()).hexdigest()


def test_user_symbols_are_one_token(tmp_path: Path) -> None:
    path = train_sentencepiece(texts(), tmp_path / "t.model", vocab_size=600, user_symbols=["<|User|>"])
    trained = load_tokenizer(path)
    assert trained.encode("<|User|>\n") == [4, 3]
    assert trained.decode([4, 3]) == "<|User|>\n"


def test_unigram_is_offered(tmp_path: Path) -> None:
    trained = load_tokenizer(train_sentencepiece(texts(), tmp_path / "t.model", vocab_size=420, model_type="unigram"))
    assert trained.decode(trained.encode(CODE)) == CODE


def test_rare_characters_leave_room_for_words(tmp_path: Path) -> None:
    rare = "".join(chr(0x4E00 + i) for i in range(3000))
    trained = load_tokenizer(train_sentencepiece([*texts(), rare], tmp_path / "t.model", vocab_size=600))
    assert trained.decode(trained.encode(rare)) == rare
    assert len(trained.encode("overtake")) <= 3


def test_a_sample_is_bounded_ordered_and_the_same_twice() -> None:
    pieces = [f"{i:09d}" for i in range(5000)]
    sample = _sample(iter(pieces), 9000)
    assert 600 < len(sample) <= 1300
    assert sample == sorted(sample) == _sample(iter(pieces), 9000)
    assert _sample(iter(pieces), 1 << 20) == pieces


def test_too_little_text_says_what_is_possible(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"too few for a vocabulary of 5000; (\d+) is the largest") as raised:
        train_sentencepiece(texts(), tmp_path / "t.model", vocab_size=5000)
    largest = int(str(raised.value).partition("; ")[2].split()[0])
    train_sentencepiece(texts(), tmp_path / "t.model", vocab_size=largest)
    with pytest.raises(DataError, match="vocab_size 100 is too small"):
        train_sentencepiece(texts(), tmp_path / "u.model", vocab_size=100)
    with pytest.raises(DataError, match="no room for the"):
        train_sentencepiece([CHINESE], tmp_path / "u.model", vocab_size=300, character_coverage=1.0)
    for empty in ([], ["", "\n"]):
        with pytest.raises(DataError, match="no text"):
            train_sentencepiece(empty, tmp_path / "u.model", vocab_size=600)
    assert [p.name for p in tmp_path.iterdir()] == ["t.model"]


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    """A folder with a tokenizer.json trained by its own library."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<s>", "</s>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    library.train_from_iterator(texts(), trainer)
    folder = tmp_path / "hf"
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    return folder


def test_hugging_face(hugging_face: Path) -> None:
    loaded = load_tokenizer(hugging_face)
    assert (loaded.vocab_size, loaded.bos_id, loaded.eos_id, loaded.pad_id) == (400, 0, 1, None)
    for text in (CHINESE, ENGLISH, CODE):
        assert loaded.decode(loaded.encode(text, bos=True, eos=True)) == text
    without = loaded.digest
    names = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "</s>", "bos_token": None}
    (hugging_face / "tokenizer_config.json").write_text(json.dumps(names))
    named = load_tokenizer(f"local:{hugging_face}")
    assert (named.bos_id, named.eos_id, named.pad_id) == (0, 2, 1)
    assert named.digest != without, "other special tokens give other token files"
    assert [path.name for path in named.files] == ["tokenizer.json", "tokenizer_config.json"]


def test_a_copy_under_another_name_loads(hugging_face: Path, tmp_path: Path) -> None:
    shutil.copy(hugging_face / "tokenizer.json", tmp_path / "tokenizer.model")
    assert load_tokenizer(tmp_path / "tokenizer.model").vocab_size == 400


def test_what_is_no_tokenizer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="no tokenizer here"):
        load_tokenizer(tmp_path / "none" / "internlm-7b")
    with pytest.raises(DataError, match=r"expected tokenizer\.json"):
        load_tokenizer(tmp_path)
    for name, content in (("a.model", b"junk"), ("empty.model", b""), ("a.json", b"{}")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="not a"):
            load_tokenizer(tmp_path / name)
    for ids in ([600], [-1]):
        with pytest.raises(DataError, match="outside the vocabulary of 600"):
            tokenizer.decode(ids)


def test_a_tokenizer_takes_texts_whole_however_it_was_saved(hugging_face: Path) -> None:
    from tokenizers import Tokenizer as Library

    plain = load_tokenizer(hugging_face).encode_batch([ENGLISH, "a"])
    saved = Library.from_file(str(hugging_face / "tokenizer.json"))
    saved.enable_truncation(4)
    saved.enable_padding(length=8)
    saved.save(str(hugging_face / "tokenizer.json"))
    assert load_tokenizer(hugging_face).encode_batch([ENGLISH, "a"]) == plain


def test_the_tutorials_sentences() -> None:
    path = os.environ.get("EVO_INTERNLM_TOKENIZER")
    if not path:
        pytest.skip("EVO_INTERNLM_TOKENIZER does not name InternLM's tokenizer model")
    internlm = load_tokenizer(path)
    assert internlm.encode_batch(CHINESE.split("\n")) == PUBLISHED

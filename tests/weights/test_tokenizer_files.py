"""What a Hugging Face folder says of a tokenizer, against the tokenizer before it was put there and transformers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from evo_core.data.tokenize.tokenizers import HuggingFaceTokenizer, load_tokenizer, train_sentencepiece
from evo_core.weights.tokenizer_files import copy_tokenizer, describe_tokenizer
from tests.data.corpora import CHINESE, CODE, ENGLISH, texts

TEXTS = [
    "<s>literal</s>",
    "an </s> between",
    "你好<s>世界</s>",
    "<unk>",
    "a nul \0 byte",
    "  two  spaces \n\n",
    "",
    CHINESE,
    ENGLISH,
    CODE,
]


def trained(folder: Path, **settings: Any) -> Path:
    return train_sentencepiece(texts(), folder / "source.model", vocab_size=420, **settings)


def bpe(folder: Path) -> Path:
    return trained(folder)


def unigram(folder: Path) -> Path:
    return trained(folder, model_type="unigram")


def with_nul_piece(folder: Path) -> Path:
    """InternLM's own models have a piece for NUL beside the one for its byte."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(trained(folder).read_bytes())
    proto.pieces[-1].piece = "\0"
    (folder / "source.model").write_bytes(proto.SerializeToString())
    return folder / "source.model"


def normalizing(folder: Path) -> Path:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts()), model_writer=model, vocab_size=200, hard_vocab_limit=False
    )
    (folder / "source.model").write_bytes(model.getvalue())
    return folder / "source.model"


@pytest.mark.parametrize("build", [bpe, unigram, with_nul_piece, normalizing])
def test_texts_keep_their_ids_in_a_folder_for_transformers(build: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = load_tokenizer(build(tmp_path))
    describe_tokenizer(copy_tokenizer(source.path, tmp_path / "hf"), tmp_path / "hf")
    exported = load_tokenizer(tmp_path / "hf")
    assert exported.encode_batch(TEXTS) == source.encode_batch(TEXTS)
    assert (exported.bos_id, exported.eos_id, exported.begin) == (source.bos_id, source.eos_id, source.begin)
    assert isinstance(exported, HuggingFaceTokenizer) or build is normalizing
    if build is normalizing:  # with white space taken away there is none that transformers reads alike
        return
    # Its Unigram takes control pieces for words.
    theirs, same = AutoTokenizer.from_pretrained(tmp_path / "hf"), TEXTS[4:] if build is unigram else TEXTS
    assert theirs(same).input_ids == [[*source.begin, *ids] for ids in source.encode_batch(same)]


def test_a_chat_template_keeps_its_special_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = tmp_path / "source"
    source.mkdir()
    train_sentencepiece(texts(), source / "tokenizer.model", vocab_size=480)
    (source / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    tokenizer = copy_tokenizer(source, tmp_path / "hf")
    describe_tokenizer(tokenizer, tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = theirs.apply_chat_template([{"role": "user", "content": "the"}], return_dict=False)
    assert ids == [1, *tokenizer.encode("the"), 2]
    assert [token for token, _, _ in load_tokenizer(tmp_path / "hf").encode_template("<s>the</s>")] == ids

"""What spells a special token is text, except where a chat template wrote it; added tokens have transformers' ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evo_core.data.sft.chat import chat
from evo_core.data.sft.encode import SampleEncoder
from evo_core.data.sft.formats import find_format
from evo_core.data.tokenize.tokenize_file import TokenizeSpec, tokenize_file
from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece
from evo_core.errors import DataError
from tests.data.corpora import read_bin, texts

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HOSTILE = "an article: a</s>b<s>c<unk>d<|im_end|>e<|im_start|>"
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def byte_level(folder: Path) -> Path:
    """Special tokens beside the model."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(SPECIAL)
    library.save(str(folder / "tokenizer.json"))
    return folder


def unigram(folder: Path) -> Path:
    """Special tokens are pieces of the model as well, which its algorithm would choose."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models

    letters = [(chr(i), -5.0) for i in range(32, 127)]
    library = Library(models.Unigram([*((name, 0.0) for name in SPECIAL), *letters], 0, False))
    library.decoder = decoders.Fuse()
    library.add_special_tokens(SPECIAL)
    library.save(str(folder / "tokenizer.json"))
    return folder


def merging(folder: Path) -> Path:
    """BPE whose merges lead to a special token."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models

    letters = [chr(i) for i in range(32, 127)]
    vocab = {piece: i for i, piece in enumerate([*SPECIAL, *letters, "</", "s>"])}
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("<", "s>")]
    library = Library(models.BPE(vocab, merges, unk_token="<unk>"))
    library.decoder = decoders.Fuse()
    library.add_special_tokens(SPECIAL)
    library.save(str(folder / "tokenizer.json"))
    return folder


def words(folder: Path) -> Path:
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers

    letters = [chr(i) for i in range(32, 127)]
    library = Library(models.WordLevel({p: i for i, p in enumerate([*SPECIAL, *letters])}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    library.add_special_tokens(SPECIAL)
    library.save(str(folder / "tokenizer.json"))
    return folder


def named_only(folder: Path) -> Path:
    """``</s>`` is an ordinary added token, which the configuration names as the end."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Library

    byte_level(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = []
    library = Library.from_str(json.dumps(content))
    library.add_tokens([AddedToken(name, special=False) for name in SPECIAL])
    library.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "extra_special_tokens": SPECIAL[3:]}
    write_json(folder / "tokenizer_config.json", names)
    return folder


def sentencepiece(folder: Path) -> Path:
    """Chat tokens that are user-defined pieces, added beyond the vocabulary, and names of ordinary pieces."""
    train_sentencepiece(texts(), folder / "tokenizer.model", vocab_size=600, user_symbols=["<|im_start|>"])
    added = {"4": {"content": "<|im_start|>", "special": True}, "600": {"content": "<|im_end|>", "special": True}}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": added, "eos_token": "<|im_end|>"})
    return folder


KINDS = {build.__name__: build for build in (byte_level, unigram, merging, words, named_only, sentencepiece)}


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder: Path = KINDS[request.param](tmp_path)
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text()) if config.is_file() else {}
    write_json(config, {"chat_template": CHATML, **settings})
    return folder


def test_text_that_spells_a_special_token_is_text(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert set(SPECIAL) <= set(tokenizer.special)
    plain = tokenizer.encode(HOSTILE)
    assert not set(plain) & set(tokenizer.special.values())
    assert tokenizer.decode(plain).replace(" ", "") == HOSTILE.replace(" ", "")
    assert [token for token, _, _ in tokenizer.encode_with_offsets(HOSTILE)] == plain
    for name in SPECIAL:
        assert not set(tokenizer.encode(name)) & set(tokenizer.special.values()), name
        assert tokenizer.piece(tokenizer.special[name]) == name and tokenizer.token_id(name) == tokenizer.special[name]


def test_text_keeps_its_ids_beside_special_tokens(folder: Path) -> None:
    """Spelling them out changes no other text: the ids are those of a model that finds them."""
    if (folder / "tokenizer.model").exists():
        pytest.skip("its library finds none")
    from tokenizers import Tokenizer as Library

    library = Library.from_file(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    for text in ("The quick brown fox.", "a < b > c / s", "<b>x</b>"):
        assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids


def test_documents_and_alpaca_and_own_formats_hold_none(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder)
    (tmp_path / "a.txt").write_text(HOSTILE + "\n")
    tokenize_file(TokenizeSpec(tmp_path / "a.txt", tmp_path / "a.bin", folder))
    (document,) = read_bin(tmp_path / "a.bin")
    assert document == [tokenizer.bos_id, *tokenizer.encode(HOSTILE), tokenizer.eos_id]
    record = {"instruction": "", "input": "", "output": HOSTILE}
    sample = SampleEncoder(tokenizer, find_format("alpaca", tokenizer), max_length=1000).encode(record)
    inside = [token for token in sample.ids if token >= 0]
    assert sum(token in tokenizer.special.values() for token in inside) <= 3  # begin, end of the answer, end


def test_a_template_makes_special_tokens_as_transformers_does(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    encoder = SampleEncoder(tokenizer, chat(tokenizer), max_length=1000)
    for said in ("hi", "one <|im_end|> and </s> and <|im_start|>"):
        messages = [{"role": "user", "content": said}, {"role": "assistant", "content": "ok"}]
        ids = theirs.apply_chat_template(messages, return_dict=False)
        text = theirs.apply_chat_template(messages, tokenize=False)
        if folder.joinpath("tokenizer.json").exists():
            assert [token for token, _, _ in tokenizer.encode_template(text)] == ids
        special = [token for token in ids if token in tokenizer.special.values()]
        found = encoder.encode({"messages": messages}).ids if 0 not in ids else ids
        assert [abs(token) for token in found if abs(token) in tokenizer.special.values()] == special


def sentencepiece_folder(tokenizer: Tokenizer, folder: Path, **files: Any) -> Path:
    shutil.copyfile(tokenizer.path, folder / "tokenizer.model")
    for name, content in files.items():
        write_json(folder / f"{name}.json", content)
    return folder


ADDED: dict[str, dict[str, Any]] = {
    "decoder": {
        "tokenizer_config": {
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {
                "600": {"content": "<|im_start|>", "special": True},
                "601": {"content": "<|im_end|>", "special": True},
                "602": {"content": "<think>", "special": False},
            },
        }
    },
    "older": {
        "tokenizer_config": {"eos_token": "<|im_end|>"},
        "special_tokens_map": {"additional_special_tokens": ["<|im_start|>"]},
        "added_tokens": {"<|im_end|>": 601, "<|im_start|>": 600, "<think>": 602},
    },
}


@pytest.mark.parametrize("form", ADDED)
def test_tokens_added_to_a_sentencepiece_vocabulary(form: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = sentencepiece_folder(tokenizer, tmp_path, **ADDED[form])
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + CHATML)
    loaded, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert (loaded.vocab_size, loaded.bos_id, loaded.eos_id) == (len(theirs), theirs.bos_token_id, 601)
    messages = [{"role": "user", "content": "undo"}, {"role": "assistant", "content": "redo"}]
    sample = SampleEncoder(loaded, chat(loaded), max_length=100).encode({"messages": messages})
    assert [abs(token) for token in sample.ids] == theirs.apply_chat_template(messages, return_dict=False)
    # What is added and not special is found in every text, as by transformers.
    assert loaded.encode("undo<think>redo") == theirs("undo<think>redo", add_special_tokens=False).input_ids
    assert loaded.encode_batch(["undo"], eos=True) == [[*tokenizer.encode("undo"), 601]]
    assert loaded.decode([*loaded.encode("undo<think>redo", eos=True)]) == "undo<think>redo"
    assert loaded.digest != tokenizer.digest
    copy = tmp_path / "copy"
    copy.mkdir()
    loaded.copy_to(copy)
    assert (load_tokenizer(copy).digest, load_tokenizer(copy).vocab_size) == (loaded.digest, 603)


@pytest.mark.parametrize("legacy", [None, False, True])
def test_text_behind_a_token_where_a_model_puts_a_space_before_a_text(
    legacy: bool | None, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """As Llama's own model does: at the start alone, unless `legacy` says so."""
    from sentencepiece import sentencepiece_model_pb2
    from transformers import AutoTokenizer

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(tokenizer.path.read_bytes())
    proto.normalizer_spec.add_dummy_prefix = True
    added = {str(i): {"content": content, "special": True} for i, content in enumerate(SPECIAL[:3])}
    added |= {"600": {"content": "<|im|>", "special": True}, "601": {"content": "<x>"}}
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config |= {} if legacy is None else {"legacy": legacy}
    folder = sentencepiece_folder(tokenizer, tmp_path, tokenizer_config={**config, "added_tokens_decoder": added})
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    loaded, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("undo", "<s>undo", "<|im|>redo<|im|>undo", "undo<x>redo"):
        ids = [token for token, _, _ in loaded.encode_template(text)]
        assert ids == theirs(text, add_special_tokens=False).input_ids
    for text in ("undo<x>redo", "undo <x> redo", "<x> undo"):
        assert loaded.decode(loaded.encode(text)) == text
        assert [token for token, _, _ in loaded.encode_with_offsets(text)] == loaded.encode(text)


def test_a_name_given_to_a_piece_takes_its_place(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As InternLM2's ``<|im_end|>`` takes that of ``[UNUSED_TOKEN_145]``: neither spelling becomes the id."""
    piece = tokenizer.piece(400)
    assert len(piece) > 1
    added = {"400": {"content": "<|im_end|>", "special": True}}
    loaded = load_tokenizer(sentencepiece_folder(tokenizer, tmp_path, tokenizer_config={"added_tokens_decoder": added}))
    assert (loaded.vocab_size, loaded.token_id("<|im_end|>"), loaded.piece(400)) == (600, 400, "<|im_end|>")
    assert loaded.token_id(piece) is None
    text = f"x<|im_end|>{piece.replace('▁', ' ')}x"
    assert 400 not in loaded.encode(text) and loaded.decode(loaded.encode(text)) == text
    assert loaded.decode([400]) == ""


def test_white_space_that_belongs_to_an_added_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    added = {
        "600": {"content": "<a>", "lstrip": True, "rstrip": True},
        "601": {"content": "<b>", "single_word": True},
    }
    loaded = load_tokenizer(sentencepiece_folder(tokenizer, tmp_path, tokenizer_config={"added_tokens_decoder": added}))
    assert loaded.encode("x <a>  y") == [*tokenizer.encode("x"), 600, *tokenizer.encode("y")]
    assert loaded.encode("x<b>") == tokenizer.encode("x<b>") and 601 in loaded.encode("x <b> y")


def test_tokens_that_a_tokenizer_json_lacks(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    size = load_tokenizer(byte_level(tmp_path)).vocab_size
    added = {str(size): {"content": "<x>"}, str(size + 1): {"content": "<|end|>", "special": True}}
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<|end|>", "added_tokens_decoder": added})
    loaded, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.eos_id, loaded.vocab_size) == (theirs.eos_token_id, len(theirs)) == (size + 1, size + 2)
    assert loaded.encode("a<x>b") == theirs("a<x>b").input_ids
    assert size + 1 not in loaded.encode("a<|end|>b")
    added[str(size + 7)] = added.pop(str(size))
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": added})
    with pytest.raises(DataError, match=r"tokenizer_config\.json: added_tokens_decoder: '.*' has the id"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("build", [byte_level, sentencepiece])
@pytest.mark.parametrize("key", ["bos_token", "eos_token", "pad_token", "unk_token"])
def test_a_named_token_is_taken_or_refused(build: Any, key: str, tmp_path: Path) -> None:
    folder = build(tmp_path)
    write_json(folder / "tokenizer_config.json", {key: "<|nowhere|>"})
    with pytest.raises(DataError, match=rf"tokenizer_config\.json: {key}: names '<\|nowhere\|>', which the vocabulary"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    write_json(folder / "special_tokens_map.json", {key: {"content": "<|nowhere|>"}})
    with pytest.raises(DataError, match=rf"special_tokens_map\.json: {key}: names"):
        load_tokenizer(folder)
    write_json(folder / "special_tokens_map.json", {key: {"content": "<|im_start|>"}})
    loaded = load_tokenizer(folder)
    if key != "unk_token":
        assert getattr(loaded, key.replace("_token", "_id")) == loaded.token_id("<|im_start|>")


WRONG = {
    '{"eos_token": 5}': "eos_token: 5 is no token",
    '{"eos_token": ["</s>"]}': r"eos_token: \['</s>'\] is no token",
    '{"added_tokens_decoder": []}': "added_tokens_decoder: expected an object",
    '{"added_tokens_decoder": {"x": {"content": "<x>"}}}': "added_tokens_decoder.x: 'x' is no token id",
    '{"added_tokens_decoder": {"-1": {"content": "<x>"}}}': "'-1' is no token id",
    '{"added_tokens_decoder": {"600": {}}}': r"added_tokens_decoder\.600: expected an object with",
    '{"added_tokens_decoder": {"600": "<x>"}}': r"added_tokens_decoder\.600: expected an object with",
    '{"extra_special_tokens": 1}': "extra_special_tokens: expected a list",
    "[]": "expected a JSON object, not list",
    "{": "not JSON",
    "[" * 100_000: "not JSON",
}


@pytest.mark.parametrize("content", WRONG, ids=lambda content: content[:40])
def test_files_that_are_wrong(content: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = sentencepiece_folder(tokenizer, tmp_path)
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(DataError, match=rf"tokenizer_config\.json: .*{WRONG[content]}"):
        load_tokenizer(folder)


@pytest.mark.parametrize("value", [True, -1, 1.5, None, "x"])
def test_ids_that_are_none(value: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = sentencepiece_folder(tokenizer, tmp_path, added_tokens={"<x>": value})
    with pytest.raises(DataError, match=r"added_tokens\.json: <x>: .* is no token id"):
        load_tokenizer(folder)

"""Alpaca samples, against the description of InternEvo's tool written down once more."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from evo_core.data.sft.alpaca import turn_ids
from evo_core.data.sft.samples import SftSettings
from evo_core.data.sft.write import write_sft_dataset, write_sft_file
from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer
from evo_core.errors import DataError
from tests.data.corpora import read_bin

RECORDS: list[dict[str, Any]] = [
    {"instruction": "Say it twice.", "input": "over and view", "output": "over and view, over and view"},
    {"instruction": "幸福是什么？", "input": "", "output": "感恩生活中的每一个细节，\n才能真正体会到幸福的滋味。"},
    {"instruction": "react", "input": "", "output": ""},
    {"instruction": "Be long.", "input": "", "output": "preview and undo " * 60},
    *({"instruction": f"undo {n}", "input": "" if n % 2 else f"with {n}", "output": f"redo {n}"} for n in range(16)),
]


def expected(record: dict[str, Any], model: sentencepiece.SentencePieceProcessor, ids: dict[str, int]) -> list[int]:
    """A sample as InternEvo's tool makes it."""
    user = f"<|User|>:{record['instruction']}"
    if record["input"] != "":
        user += "\n" + record["input"]
    tokens = [model.bos_id()]
    tokens += [-i for i in [*model.encode(user), ids["eoh"], ids["nl"]]]
    tokens += [-i for i in model.encode("<|Bot|>:")]
    tokens += [*model.encode(record["output"]), ids["eoa"], ids["nl"]]
    return [*tokens[:2047], model.eos_id()]


def write(folder: Path, tokenizer: Path, **options: Any) -> Path:
    dataset = folder / "alpaca.json"
    dataset.write_text(json.dumps(RECORDS), encoding="utf-8")
    write_sft_dataset([dataset], folder / "out", SftSettings(tokenizer), **options)
    return folder / "out"


def check(folder: Path, tokenizer: Path, ids: dict[str, int]) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    out = write(folder, tokenizer, split_ratio=0.2)
    train, valid = read_bin(out / "train/en/dataset.bin"), read_bin(out / "valid/en/dataset.bin")
    held_out = np.random.RandomState(0).choice(len(RECORDS), 4, replace=False)
    assert valid == [expected(RECORDS[n], model, ids) for n in sorted(held_out)]
    assert train == [expected(record, model, ids) for n, record in enumerate(RECORDS) if n not in held_out]


def test_equal_to_the_description(tmp_path: Path, tokenizer: Tokenizer) -> None:
    newline = tokenizer.token_id("<0x0A>")
    assert newline is not None and tokenizer.eos_id is not None
    check(tmp_path, tokenizer.path, {"eoh": tokenizer.eos_id, "eoa": tokenizer.eos_id, "nl": newline})


@pytest.mark.skipif("EVO_INTERNLM_TOKENIZER" not in os.environ, reason="EVO_INTERNLM_TOKENIZER is not set")
def test_equal_to_the_description_with_internlms_model(tmp_path: Path) -> None:
    check(tmp_path, Path(os.environ["EVO_INTERNLM_TOKENIZER"]), {"eoh": 103167, "eoa": 103166, "nl": 13})


def test_cut_like_internevo(tmp_path: Path, tokenizer: Tokenizer) -> None:
    out = write(tmp_path, tokenizer.path, split_ratio=0)
    whole = read_bin(out / "train/en/dataset.bin")[3]
    result = write_sft_dataset(
        [tmp_path / "alpaca.json"], tmp_path / "cut", SftSettings(tokenizer.path, max_length=50), split_ratio=0
    )
    cut = read_bin(tmp_path / "cut/train/en/dataset.bin")[3]
    assert len(whole) > 50
    assert cut == [*whole[:49], tokenizer.eos_id]
    assert result.cut >= 1
    assert result.splits["train"].trained == sum(
        token >= 0 for ids in read_bin(tmp_path / "cut/train/en/dataset.bin") for token in ids
    )


class Vocabulary(Tokenizer):
    """Only what the search for turn tokens asks."""

    def __init__(self, *pieces: str, vocab_size: int = 1000, eos_id: int | None = 2) -> None:
        self.path, self.vocab_size, self.eos_id = Path("vocabulary"), vocab_size, eos_id
        self._pieces = {piece: number for number, piece in enumerate(pieces, 100)}

    def token_id(self, piece: str) -> int | None:
        return self._pieces.get(piece)

    def piece(self, token: int) -> str:
        return next((piece for piece, number in self._pieces.items() if number == token), "")

    def decode(self, ids: Any) -> str:
        return "".join(map(self.piece, ids))

    def encode_with_offsets(self, text: str) -> list[tuple[int, int, int]]:
        return [(self._pieces[text], 0, len(text))]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [[self._pieces[text]] for text in texts]


@pytest.mark.parametrize(
    ("vocabulary", "found"),
    [
        (Vocabulary("<eoh>", "<eoa>", "<0x0A>", vocab_size=103168), (103167, 103166, (13,))),
        (Vocabulary(vocab_size=92544), (92542, 92542, (13,))),
        (Vocabulary("<eoh>", "<eoa>", "<0x0A>", "\n"), (100, 101, (102,))),
        (Vocabulary("<eoh>", "<|im_end|>", "Ċ"), (101, 101, (102,))),
        (Vocabulary("<|eot_id|>", "\n"), (100, 100, (101,))),
        (Vocabulary(), (2, 2, ())),
    ],
)
def test_turn_ids(vocabulary: Tokenizer, found: tuple[int, int, tuple[int, ...]]) -> None:
    turns = turn_ids(vocabulary)
    assert (turns.eoh, turns.eoa, turns.newline) == found


def test_a_vocabulary_that_cannot_end_a_turn() -> None:
    with pytest.raises(DataError, match="no token that could end a turn"):
        turn_ids(Vocabulary(eos_id=None))


def test_the_tokenizer_is_kept(tmp_path: Path, tokenizer: Tokenizer) -> None:
    out = write(tmp_path, tokenizer.path)
    assert load_tokenizer(out / "tokenizer").digest == tokenizer.digest
    assert sorted(path.name for path in out.iterdir()) == ["origins.json", "tokenizer", "train", "valid"]


def test_system_and_history(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Turns before this one are trained on as LLaMA-Factory does, a system text is read."""
    record = {"instruction": "undo", "output": "redo", "system": "view", "history": [["react", "over"], ["a", "b"]]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n" + json.dumps({**record, "system": None, "history": []}))
    write_sft_file([tmp_path / "a.jsonl"], tmp_path / "a.bin", SftSettings(tokenizer.path))
    turns = turn_ids(tokenizer)
    end = [turns.eoh, *turns.newline]

    def turn(question: str, answer: str) -> list[int]:
        asked = [*tokenizer.encode(f"<|User|>:{question}"), *end, *tokenizer.encode("<|Bot|>:")]
        return [*(-i for i in asked), *tokenizer.encode(answer), *end]

    system = [-i for i in [*tokenizer.encode("<|System|>:view"), *turns.newline]]
    last = [*turn("undo", "redo"), tokenizer.eos_id]
    assert read_bin(tmp_path / "a.bin") == [
        [tokenizer.bos_id, *system, *turn("react", "over"), *turn("a", "b"), *last],
        [tokenizer.bos_id, *last],
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"system": ["a"]}, "the field 'system' is not text"),
        ({"images": ["a.png"]}, "it comes with the field 'images'"),
        ({"kto_tag": False}, "it is marked as a wrong answer"),
        ({"history": "q"}, "the field 'history' is not a list"),
        ({"history": [["q", "a"], ["q"]]}, "entry 2 of 'history' is not a pair of texts"),
        ({"history": [{"q": "a"}]}, "entry 1 of 'history' is not a pair of texts"),
        ({"history": [["q", None]]}, "entry 1 of 'history' is not a pair of texts"),
    ],
)
def test_fields_that_are_wrong(fields: dict[str, Any], message: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"instruction": "a", "output": "b", "videos": [], **fields}))
    with pytest.raises(DataError, match=rf"a\.jsonl:1: {message}"):
        write_sft_file([tmp_path / "a.jsonl"], tmp_path / "a.bin", SftSettings(tokenizer.path))

"""What becomes of samples that are longer than they may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models
from typer.testing import CliRunner

from evo_core.data.commands import app
from evo_core.data.sft.encode import Sample, SampleEncoder
from evo_core.data.sft.pieces import Format, NoRoomError, Piece, RecordError
from evo_core.data.sft.samples import SftSettings
from evo_core.data.sft.write import SftResult, write_sft_dataset, write_sft_file
from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer
from evo_core.errors import DataError
from tests.data.corpora import read_bin

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
LONG = "w" * 100
RECORDS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": LONG, "input": "", "output": "answer"},
    "chat": {"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": "answer"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": LONG}, {"from": "gpt", "value": "answer"}]},
}


def write(record: Any, name: str, folder: Path, tokenizer: Tokenizer, **settings: Any) -> SftResult:
    (folder / "t.jinja").write_text(TEMPLATE)
    (folder / "records.jsonl").write_text(json.dumps(record) + "\n")
    template = None if name == "alpaca" else folder / "t.jinja"
    return write_sft_file(
        [folder / "records.jsonl"], folder / "out.bin", SftSettings(tokenizer.path, name, template, **settings)
    )


@pytest.mark.parametrize("marks", [None, True, False])
@pytest.mark.parametrize("name", RECORDS)
def test_a_prompt_that_fills_the_length(name: str, marks: bool | None, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Left out and counted, whatever stands around samples; it is no error."""
    result = write(RECORDS[name], name, tmp_path, tokenizer, max_length=50, bos=marks, eos=marks)
    assert read_bin(tmp_path / "out.bin") == []
    assert (result.skipped.no_room, result.skipped.count, result.cut) == (1, 0, 0)
    result = write(RECORDS[name], name, tmp_path, tokenizer, bos=marks, eos=marks)
    assert len(read_bin(tmp_path / "out.bin")) == 1 and result.skipped.no_room == 0


def encoder(tokenizer: Tokenizer, *pieces: Piece, max_length: int, **options: Any) -> SampleEncoder:
    return SampleEncoder(tokenizer, Format("mine", lambda record: pieces, **options), max_length=max_length)


TURNS: list[Piece] = [([11, 12, 13], False), ([21, 22, 23], True), ([31, 32, 33], False), ([41, 42, 43], True)]


@pytest.mark.parametrize(
    ("length", "ids"),
    [
        (14, [1, -11, -12, -13, 21, 22, 23, -31, -32, -33, 41, 42, 43, 2]),
        (13, [1, -11, -12, -13, 21, 22, 23, -31, -32, -33, 41, 42]),  # inside an answer: it does not end there
        (10, [1, -11, -12, -13, 21, 22, 23, -31, -32]),  # inside the user's words: no end that is trained on
        (6, [1, -11, -12, -13, 21]),
        (5, None),  # no room for a token of the answer
        (2, None),
    ],
)
def test_where_the_cut_falls(length: int, ids: list[int] | None, tokenizer: Tokenizer) -> None:
    (found,) = encoder(tokenizer, *TURNS, max_length=length).encode_batch([{}])
    if ids is None:
        assert isinstance(found, NoRoomError)
    else:
        assert found == Sample(ids, sum(i > 0 for i in ids), cut=length < 14)


def test_internevos_format_ends_where_it_is_cut_inside_an_answer(tokenizer: Tokenizer) -> None:
    def cut(length: int) -> Sample | RecordError:
        return encoder(tokenizer, *TURNS, max_length=length, end_of_cut=True).encode_batch([{}])[0]

    assert cut(7) == Sample([1, -11, -12, -13, 21, 22, 2], 4, cut=True)
    assert cut(10) == Sample([1, -11, -12, -13, 21, 22, 23, -31, -32], 4, cut=True)
    assert isinstance(cut(5), NoRoomError) and isinstance(cut(2), NoRoomError)


def test_a_first_token_is_never_learnt(tokenizer: Tokenizer) -> None:
    """So a sample without a begin id whose answer is its first token has nothing to train on."""
    options = {"bos": False, "eos": False, "max_length": 3}
    (short,) = encoder(tokenizer, ([5], True), **options).encode_batch([{}])
    (long,) = encoder(tokenizer, ([5], True), ([6, 7, 8], False), ([9], True), **options).encode_batch([{}])
    assert isinstance(short, RecordError) and "nothing of it is trained on" in str(short)
    assert isinstance(long, NoRoomError)


def of_model(model: models.Model, folder: Path) -> Tokenizer:
    tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def test_an_answer_that_the_tokenizer_makes_nothing_of(tmp_path: Path) -> None:
    tokenizer = of_model(models.BPE({"<s>": 0, "</s>": 1, "a": 2}, []), tmp_path)
    (found,) = encoder(tokenizer, ("a", False), ("b", True), max_length=50).encode_batch([{}])
    assert isinstance(found, RecordError) and "nothing of it is trained on" in str(found)


@pytest.mark.parametrize("as_one_text", [True, False])
def test_a_record_that_the_tokenizer_fails_on(as_one_text: bool, tmp_path: Path) -> None:
    tokenizer = of_model(models.WordLevel({"<s>": 0, "</s>": 1, "undo": 2, "a": 3}), tmp_path)
    mine = Format("mine", lambda record: [(record["text"], True)], as_one_text=as_one_text)
    records = [{"text": text} for text in ("undo", "unheard", "undo")]
    first, second, third = SampleEncoder(tokenizer, mine, max_length=9).encode_batch(records)
    assert first == third == Sample([0, 2, 1], 3, cut=False)
    assert isinstance(second, RecordError) and "the tokenizer failed: Exception: WordLevel error" in str(second)


def test_the_command_counts_them(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records = [RECORDS["alpaca"], *({"instruction": f"undo {n}", "output": "redo"} for n in range(3))]
    (tmp_path / "a.json").write_text(json.dumps(records))
    arguments = [tmp_path / "a.json", tmp_path / "out", tokenizer.path, "--max-length", 60, "--split-ratio", 0]
    output = CliRunner().invoke(app, ["tokenize-sft", *map(str, arguments)]).output
    assert "left out, as the prompt fills 60 tokens: 1 sample\n" in output
    assert "train: 3 samples" in output


def test_where_nothing_is_left(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.json").write_text(json.dumps([RECORDS["alpaca"]] * 2))
    with pytest.raises(DataError, match=r"a\.json: there is not a single sample in it: .* 2 with a prompt that leaves"):
        write_sft_dataset([tmp_path / "a.json"], tmp_path / "out", SftSettings(tokenizer.path, max_length=50))
    assert not (tmp_path / "out").exists()

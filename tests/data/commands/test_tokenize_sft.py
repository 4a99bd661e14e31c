"""`evo data tokenize-sft` with the tutorial's three positions, and every option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evo_core.data.commands import app
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError
from tests.data.corpora import read_bin


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    records = [{"instruction": f"undo {n}", "input": "", "output": f"redo {n} " * 5} for n in range(20)]
    (tmp_path / "alpaca.json").write_text(json.dumps(records))
    return tmp_path / "alpaca.json"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["tokenize-sft", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.mark.parametrize("spelling", ["--split_ratio", "--split-ratio"])
def test_the_tutorials_command(spelling: str, dataset: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = run(dataset, tmp_path / "out", tokenizer.path, spelling, 0.25)
    assert "end of prompt 2, end of answer 2, newline 14 (eos, as the vocabulary has no turn tokens)" in text
    assert "train: 15 samples" in text and "valid: 5 samples" in text
    assert len(read_bin(tmp_path / "out/valid/en/dataset.bin")) == 5


def test_options(dataset: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    broken = json.loads(dataset.read_text())
    del broken[3]["output"]
    dataset.write_text(json.dumps(broken))
    options = ("--type", "code", "--seed", 3, "--max-length", 34, "--workers", 1, "--no-bos", "--no-eos")
    with pytest.raises(DataError, match="record 4: there is no field 'output'"):
        run(dataset, tmp_path / "out", tokenizer.path, *options)
    text = run(dataset, tmp_path / "out", tokenizer.path, *options, "--on-error", "skip")
    assert "cut at 34 tokens: 19 samples" in text
    assert "skipped: 1 record; the first: " in text and "record 4: there is no field 'output'" in text
    ids = read_bin(tmp_path / "out/train/code/dataset.bin")
    assert all(len(sample) == 34 and sample[0] < 0 and sample[-1] != tokenizer.eos_id for sample in ids)


def test_chat_with_a_template_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    messages = [{"role": "user", "content": "undo"}, {"role": "assistant", "content": "redo"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    text = run(
        tmp_path / "chat.jsonl",
        tmp_path / "out",
        tokenizer.path,
        *("--format", "chat", "--chat-template", template, "--split-ratio", 0),
    )
    assert f"chat: chat template: {template}" in text
    (ids,) = read_bin(tmp_path / "out/train/en/dataset.bin")
    whole = tokenizer.encode("user: undo\nassistant: redo\n")
    assert [abs(token) for token in ids] == whole
    assert tokenizer.decode(token for token in ids if token >= 0) == "assistant: redo\n"

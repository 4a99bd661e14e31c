"""`evo data tokenize`, as its users type it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from evo_core.data.commands import app
from evo_core.data.commands.tokenize import tokenize
from evo_core.data.raw.documents import MAX_RECORD_BYTES
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError
from tests.data.corpora import CHINESE, CODE, ENGLISH, read_bin
from tests.data.tokenize.test_tokenizers import PUBLISHED


def call(*arguments: object) -> Result:
    """The command in this process; an error of the user's is raised."""
    result = CliRunner().invoke(app, ["tokenize", *map(str, arguments)])
    if isinstance(result.exception, DataError):
        raise result.exception
    return result


def decoded(path: Path, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(ids) for ids in read_bin(path)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Raw files in every format, and one that is none."""
    raw = tmp_path / "raw"
    (raw / "sub").mkdir(parents=True)
    (raw / "a.txt").write_text("one\ntwo\n")
    (raw / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three", "lang": "en"}\n'))
    (raw / "sub" / "c.json").write_text(json.dumps([{"text": CODE}]))
    (raw / "README").write_text("not raw text")
    return raw


def test_files_folders_and_patterns_in_their_order(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    out = tmp_path / "out" / "all.bin"
    last = tmp_path / "z.txt"
    last.write_text("last\n")
    result = call(last, folder, folder / "*.txt", "--output", out, "--tokenizer", tokenizer.path)
    assert result.exit_code == 0
    assert decoded(out, tokenizer) == ["last", "one", "two", "three", CODE, "one", "two"]
    assert result.stdout.startswith(f"5 files, 7 documents, {sum(map(len, read_bin(out))):,} tokens, ")
    assert str(out) in result.stdout
    assert sorted(path.name for path in out.parent.iterdir()) == ["all.bin", "all.bin.meta"]


def test_fields_types_and_skipping(tmp_path: Path, tokenizer: Tokenizer) -> None:
    raw = tmp_path / "a.jsonl"
    raw.write_text('{"t": "a", "b": "x", "lang": "en"}\n{"t": "b", "b": "y"}\n{"t": "c", "b": "z", "lang": "cn"}\n')
    options = ("--output", tmp_path / "a.bin", "--tokenizer", tokenizer.path, "--text-key", "t", "--text-key", "b")
    with pytest.raises(DataError, match=r"a\.jsonl:2: there is no field 'lang'"):
        call(raw, *options, "--type-key", "lang")
    assert not (tmp_path / "a.bin").exists()
    result = call(raw, *options, "--type-key", "lang", "--on-error", "skip", "--no-bos", "--no-eos")
    assert decoded(tmp_path / "a.bin", tokenizer) == ["a\nx", "c\nz"]
    assert read_bin(tmp_path / "a.bin")[0] == tokenizer.encode("a\nx")
    assert "  cn: 1 documents" in result.stdout
    assert f"skipped: 1 record; the first: {raw}:2: there is no field 'lang'" in result.stdout
    assert json.loads((tmp_path / "a.bin.types").read_text())["types"] == ["en", "cn"]
    call(raw, *options)
    assert not (tmp_path / "a.bin.types").exists(), "types of an earlier run would be taken for this one's"


def test_running_again_replaces(tmp_path: Path, tokenizer: Tokenizer) -> None:
    raw, out = tmp_path / "a.txt", tmp_path / "a.bin"
    raw.write_text("one\n")
    arguments = ("--text_input_path", raw, "--bin_output_path", out, "--tokenizer", tokenizer.path)
    call(*arguments)
    first = out.read_bytes()
    call(*arguments)
    assert out.read_bytes() == first
    raw.write_text("other\n")
    call(*arguments)
    assert decoded(out, tokenizer) == ["other"]


def test_what_is_missing(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    out = ("--output", tmp_path / "a.bin")
    with pytest.raises(DataError, match=r"--tokenizer: is required \(.*V7_sft.model.*hub id.*train"):
        call(folder, *out)
    known = ("--tokenizer", tokenizer.path)
    with pytest.raises(DataError, match="INPUT: there is nothing to tokenize"):
        call(*out, *known)
    with pytest.raises(DataError, match="--output: is required"):
        call(folder, *known)
    with pytest.raises(DataError, match=r"does not end in \.bin"):
        call(folder, "--output", tmp_path / "out", *known)
    for nothing in (tmp_path / "none.txt", tmp_path / "*.jsonl"):
        with pytest.raises(DataError, match="there is no such file"):
            call(nothing, *out, *known)
    with pytest.raises(DataError, match=r"README: no format is known"):
        call(folder / "README", *out, *known)
    (tmp_path / "other").mkdir()
    shutil.copy(folder / "README", tmp_path / "other")
    with pytest.raises(DataError, match="there is no file of text"):
        call(tmp_path / "other", *out, *known)
    with pytest.raises(DataError, match="README: not a SentencePiece model"):
        call(folder, *out, "--tokenizer", folder / "README")
    assert not (tmp_path / "a.bin").exists()


def test_modes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    raw, out = tmp_path / "a.jsonl", tmp_path / "a.bin"
    raw.write_text('{"text": "a"}\n')
    call(raw, "--output", out, "--tokenizer", tokenizer.path, "--mode", "internevo")
    assert decoded(out, tokenizer) == ['{"text": "a"}\n']
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"InternEvo reads \.txt, \.json and \.jsonl alone"):
        call(tmp_path / "a.parquet", "--output", out, "--tokenizer", tokenizer.path, "--mode", "internevo")


def test_the_default_limit_is_the_librarys() -> None:
    assert tokenize.__defaults__ is not None
    assert MAX_RECORD_BYTES in tokenize.__defaults__


@pytest.mark.parametrize("name", ["evo data", "python -m evo_core.data"])
def test_exit_codes(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    program = [sys.executable, "-m", "evo_core.data"]
    if name == "evo data":
        program = [sys.executable, "-c", "from flows.cli import main; main()", "data"]
    raw = tmp_path / "a.txt"
    raw.write_text("\n".join([CHINESE, ENGLISH]))
    options = ["--output", str(tmp_path / "a.bin"), "--tokenizer", str(tokenizer.path)]
    done = subprocess.run([*program, "tokenize", str(raw), *options], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "documents" in done.stdout
    raw.write_bytes(b"\xff\n")
    done = subprocess.run([*program, "tokenize", str(raw), *options], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{raw}:1: not UTF-8 at byte 0 of the line" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_tutorials_example(tmp_path: Path) -> None:
    model = os.environ.get("EVO_INTERNLM_TOKENIZER")
    if not model:
        pytest.skip("EVO_INTERNLM_TOKENIZER does not name InternLM's tokenizer model")
    raw, out = tmp_path / "raw_data.txt", tmp_path / "cn" / "output.bin"
    raw.write_text(CHINESE + "\n")
    call("--text_input_path", raw, "--bin_output_path", out, "--tokenizer", model, "--no-bos", "--no-eos")
    lines = out.read_text().splitlines()
    assert lines == [f'{{"tokens": [{", ".join(map(str, ids))}]}}' for ids in PUBLISHED]
    assert np.load(f"{out}.meta").tolist() == [[0, 11], [90, 15], [208, 13]]


@pytest.fixture
def markless(tmp_path: Path) -> Path:
    """A tokenizer that has neither a begin nor an end token."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    library = Library(models.BPE({chr(i): i - 32 for i in range(32, 127)}, []))
    library.save(str(tmp_path / "markless.json"))
    return tmp_path / "markless.json"


def test_a_token_that_the_tokenizer_lacks_is_told_by_its_flag(folder: Path, tmp_path: Path, markless: Path) -> None:
    arguments = (folder, "--output", tmp_path / "a.bin", "--tokenizer", markless)
    with pytest.raises(DataError, match=r"markless\.json: --bos: this tokenizer has no bos token \(give --no-bos\)"):
        call(*arguments)
    with pytest.raises(DataError, match=r"--eos: this tokenizer has no eos token \(give --no-eos\)"):
        call(*arguments, "--no-bos")
    assert not (tmp_path / "a.bin").exists()
    assert call(*arguments, "--no-bos", "--no-eos").exit_code == 0
    sft = ["tokenize-sft", str(folder), str(tmp_path / "sft"), str(markless), "--split-ratio", "2"]
    with pytest.raises(DataError, match=r"^--split-ratio: must be at least 0 and below 1, not 2\.0"):
        raise CliRunner().invoke(app, sft).exception  # type: ignore[misc]


def test_a_text_of_which_nothing_is_left_is_no_document(tmp_path: Path) -> None:
    import io

    import sentencepiece
    from datasets import Dataset

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([ENGLISH]), model_writer=model, model_type="char", vocab_size=30, hard_vocab_limit=False
    )
    (tmp_path / "nfkc.model").write_bytes(model.getvalue())
    raw = tmp_path / "raw"
    raw.mkdir()
    records = [{"text": text} for text in ("\u200b\u200b", "the", None, " ")]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (raw / "a.txt").write_text("\u200b\u200b\nthe\n")
    (raw / "b.jsonl").write_text(lines)
    (raw / "c.json").write_text(json.dumps(records))
    (raw / "d.txt.gz").write_bytes(gzip.compress("\u200b\nthe\n".encode()))
    Dataset.from_list(records).to_parquet(raw / "e.parquet")
    for options, around in (((), 2), (("--no-bos",), 1), (("--no-bos", "--no-eos"), 0)):
        result = call(raw, "--output", tmp_path / "a.bin", "--tokenizer", tmp_path / "nfkc.model", *options)
        documents = read_bin(tmp_path / "a.bin")
        assert len(documents) == 5 and len({tuple(ids) for ids in documents}) == 1
        assert len(documents[0]) > around
        assert "blank: 11 texts without a token" in result.output

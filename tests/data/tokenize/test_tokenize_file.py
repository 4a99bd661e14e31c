"""One raw file to one token file."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from evo_core.data.tokenize.tokenize_file import TokenizeSpec, tokenize_file
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError
from tests.data.corpora import CHINESE, CODE, ENGLISH, read_bin
from tests.data.tokenize.test_tokenizers import PUBLISHED


def _jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def test_documents_come_back(tmp_path: Path, tokenizer: Tokenizer) -> None:
    raw = _jsonl(tmp_path / "a.jsonl", [CHINESE, ENGLISH, CODE])
    spec = TokenizeSpec(raw, tmp_path / "out" / "a.bin", tokenizer.path)
    result = tokenize_file(pickle.loads(pickle.dumps(spec)))
    written = read_bin(spec.output)
    assert [tokenizer.decode(ids) for ids in written] == [CHINESE, ENGLISH, CODE]
    assert all((ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id) for ids in written)
    assert result.documents == 3
    assert result.tokens == sum(map(len, written))
    assert result.bytes == len((CHINESE + ENGLISH + CODE).encode())
    assert pickle.loads(pickle.dumps(result)) == result


def test_batches_do_not_show(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = _jsonl(tmp_path / "a.jsonl", [CHINESE, ENGLISH, CODE] * 3)
    tokenize_file(TokenizeSpec(raw, tmp_path / "a.bin", tokenizer.path))
    monkeypatch.setattr("evo_core.data.tokenize.tokenize_file._BATCH_CHARACTERS", 1)
    tokenize_file(TokenizeSpec(raw, tmp_path / "b.bin", tokenizer.path))
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_without_bos_and_eos(tmp_path: Path, tokenizer: Tokenizer) -> None:
    raw = _jsonl(tmp_path / "a.jsonl", [ENGLISH])
    tokenize_file(TokenizeSpec(raw, tmp_path / "a.bin", tokenizer.path, bos=False, eos=False))
    assert read_bin(tmp_path / "a.bin") == [tokenizer.encode(ENGLISH)]


def test_internevo_takes_lines_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    raw = _jsonl(tmp_path / "a.jsonl", [ENGLISH, CODE])
    tokenize_file(TokenizeSpec(raw, tmp_path / "a.bin", tokenizer.path, mode="internevo"))
    lines = raw.read_text().splitlines(keepends=True)
    assert [tokenizer.decode(ids) for ids in read_bin(tmp_path / "a.bin")] == lines


def test_wrong_records_are_counted_or_stop_everything(tmp_path: Path, tokenizer: Tokenizer) -> None:
    raw = _jsonl(tmp_path / "a.jsonl", [ENGLISH])
    raw.write_bytes(raw.read_bytes() + b'{"txt": 1}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: there is no field"):
        tokenize_file(TokenizeSpec(raw, tmp_path / "out.bin", tokenizer.path))
    assert [path.name for path in tmp_path.glob("*out*")] == []
    result = tokenize_file(TokenizeSpec(raw, tmp_path / "out.bin", tokenizer.path, on_error="skip"))
    assert (result.documents, result.skipped) == (1, 1)
    assert "a.jsonl:2" in (result.first_error or "")


def test_an_empty_file_gives_no_documents(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("\n\n")
    assert tokenize_file(TokenizeSpec(tmp_path / "a.txt", tmp_path / "a.bin", tokenizer.path)).documents == 0
    assert read_bin(tmp_path / "a.bin") == []


def test_a_tokenizer_without_bos(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr(tokenizer, "bos_id", None)
    monkeypatch.setattr("evo_core.data.tokenize.tokenize_file.load_tokenizer", lambda path: tokenizer)
    copy = tmp_path / "t.model"
    copy.write_bytes(tokenizer.path.read_bytes())
    with pytest.raises(DataError, match=r"no bos token \(set bos: false\)"):
        tokenize_file(TokenizeSpec(tmp_path / "a.txt", tmp_path / "a.bin", copy))


def test_the_tutorials_example(tmp_path: Path) -> None:
    model = os.environ.get("EVO_INTERNLM_TOKENIZER")
    if not model:
        pytest.skip("EVO_INTERNLM_TOKENIZER does not name InternLM's tokenizer model")
    raw = tmp_path / "raw_data.txt"
    raw.write_text(CHINESE + "\n")
    spec = TokenizeSpec(raw, tmp_path / "cn" / "output.bin", Path(model), bos=False, eos=False)
    tokenize_file(spec)
    assert read_bin(spec.output) == PUBLISHED
    assert np.load(f"{spec.output}.meta").tolist() == [[0, 11], [90, 15], [208, 13]]

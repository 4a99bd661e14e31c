"""Mode internevo against a second writing of what InternEvo's ``tools/tokenizer.py`` is documented to do."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from evo_core.data.tokenize.tokenize_file import TokenizeSpec, tokenize_file
from evo_core.data.tokenize.tokenizers import Tokenizer
from tests.data.corpora import CHINESE, CODE, ENGLISH


def internevo_tool(text_input_path: Path, bin_output_path: Path, model: Path, bos: bool, eos: bool) -> None:
    """As InternEvo: text mode, SentencePiece with bos and eos, and the meta made by reading the .bin again.

    InternEvo always adds both ids, appends to a .bin that is there, and writes an int32 meta.
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model), add_bos=bos, add_eos=eos)

    def dump(text: str, out: io.BufferedWriter) -> None:
        out.write((json.dumps({"tokens": processor.encode(text)}) + "\n").encode())

    with bin_output_path.open("ab") as out, text_input_path.open(encoding="utf-8") as file:
        if text_input_path.suffix == ".txt":
            for line in file:
                if line.strip():
                    dump(line.strip(), out)
        elif text_input_path.suffix == ".json":
            for record in json.load(file):
                dump(json.dumps(record), out)
        else:
            for line in file:
                dump(line, out)
    meta, at = [], 0
    with bin_output_path.open("rb") as made:
        for line_of_bin in made:
            meta.append((at, len(json.loads(line_of_bin)["tokens"])))
            at += len(line_of_bin)
    with Path(f"{bin_output_path}.meta").open("wb") as file_of_meta:
        np.save(file_of_meta, np.array(meta, dtype=np.int32))


RECORDS = [
    {"text": CHINESE, "n": 1.0, "big": 2**70, "none": None},
    {"text": ENGLISH, "nested": {"a": [True, "\u2028", "😀"]}},
    "a bare string",
    [1e300, -0.0, float("nan"), float("inf")],
    {"text": CODE},
]
FILES = {
    "lines.txt": f"{CHINESE}\n\n  {ENGLISH}\r\n\t\n{CODE}\rlast".encode(),
    "ended.txt": b"one\ntwo\n",
    "pretty.json": json.dumps(RECORDS, indent=2, ensure_ascii=False).encode(),
    "dense.json": json.dumps(RECORDS, separators=(",", ":")).encode(),
    "records.jsonl": b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in RECORDS),
    "unended.jsonl": b'{"text": "a"}\n\n{"text":   "b"}',
    "returns.jsonl": b'{"text": "a"}\r\n{"text": "b"}\r\n',
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("marks", [True, False], ids=["bos and eos", "neither"])
def test_the_bin_is_byte_for_byte_internevos(tmp_path: Path, tokenizer: Tokenizer, name: str, marks: bool) -> None:
    raw = tmp_path / name
    raw.write_bytes(FILES[name])
    internevo_tool(raw, tmp_path / "internevo.bin", tokenizer.path, marks, marks)
    spec = TokenizeSpec(raw, tmp_path / "ours.bin", tokenizer.path, mode="internevo", bos=marks, eos=marks)
    tokenize_file(spec)
    assert (tmp_path / "ours.bin").read_bytes() == (tmp_path / "internevo.bin").read_bytes()
    ours, original = np.load(tmp_path / "ours.bin.meta"), np.load(tmp_path / "internevo.bin.meta")
    assert ours.dtype == np.int64
    assert ours.tolist() == original.tolist()


@pytest.mark.parametrize("name", ["lines.txt", "ended.txt"])
def test_text_is_read_alike_in_both_modes(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    raw = tmp_path / name
    raw.write_bytes(FILES[name])
    for mode in ("text", "internevo"):
        tokenize_file(TokenizeSpec(raw, tmp_path / f"{mode}.bin", tokenizer.path, mode=mode))  # type: ignore[arg-type]
    assert (tmp_path / "text.bin").read_bytes() == (tmp_path / "internevo.bin").read_bytes()

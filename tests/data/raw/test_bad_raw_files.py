"""Raw files that are wrong, and disks that are full: a clear error with file and line, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evo_core.data.shards.format import BinWriter
from evo_core.data.tokenize.tokenize_file import TokenizeSpec, tokenize_file
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError
from tests.data.corpora import ENGLISH, read_bin

GOOD = b'{"text": "a"}\n'


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


WRONG = {
    "bytes.jsonl": (GOOD + b'{"text": "\xff"}\n', r":2: not UTF-8 at byte 10 of the line", 1),
    "bytes.txt": (b"a\n\n\xe6\x84\n", r":3: not UTF-8 at byte 0 of the line", 1),
    "empty.txt": (b"", ": the file is empty", 0),
    "empty.jsonl": (b"", ": the file is empty", 0),
    "empty.json": (b"", ": the file is empty", 0),
    "cut.jsonl": (GOOD + b'{"text": "b', r":2: not JSON, or cut off", 1),
    "field.jsonl": (GOOD + b'{"txt": "b"}\n' + GOOD, r":2: there is no field 'text' \(its fields: 'txt'\)", 2),
    "number.json": (b'[{"text": 1}, {"text": "b"}]', ": record 1: the field 'text' is not text", 1),
    "half.json": (b'[{"text": "b"}, {"text": "\\ud800"}]', ": record 2: half a character", 1),
    "half.jsonl": (GOOD + b'{"text": "\\ud800"}\n', ":2: half a character", 1),
    "long.txt": (b"a\n" + b"x" * 3000 + b"\nb\n", r":2: a line of more than 1,000 bytes", 2),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_error_or_skipped_and_counted(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    content, message, documents = WRONG[name]
    (tmp_path / name).write_bytes(content)
    spec = TokenizeSpec(tmp_path / name, tmp_path / "out" / "a.bin", tokenizer.path, max_record_bytes=1000)
    with pytest.raises(DataError, match=name.replace(".", r"\.") + message):
        tokenize_file(spec)
    assert left(tmp_path / "out") == []
    skipping = TokenizeSpec(**{**vars(spec), "on_error": "skip"})
    result = tokenize_file(skipping)
    assert (result.documents, result.skipped) == (documents, 1)
    assert len(read_bin(spec.output)) == documents
    assert result.first_error is not None
    assert str(tmp_path / name) in result.first_error


def test_what_is_no_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "folder.txt").mkdir()
    for name, message in {"folder.txt": "this is a folder", "none.txt": "there is no such file"}.items():
        with pytest.raises(DataError, match=message):
            tokenize_file(TokenizeSpec(tmp_path / name, tmp_path / "out" / "a.bin", tokenizer.path))
    assert left(tmp_path) == []


def test_an_earlier_output_stays_when_a_new_one_fails(tmp_path: Path, tokenizer: Tokenizer) -> None:
    raw, out = tmp_path / "a.jsonl", tmp_path / "out" / "a.bin"
    raw.write_bytes(b'{"text": "a", "lang": "en"}\n')
    tokenize_file(TokenizeSpec(raw, out, tokenizer.path, type_key="lang"))
    before = [(out.parent / name).read_bytes() for name in left(out.parent)]
    raw.write_bytes(b'{"text": "b", "lang": "cn"}\n{"text": "b"}\n')
    with pytest.raises(DataError, match="no field 'lang'"):
        tokenize_file(TokenizeSpec(raw, out, tokenizer.path, type_key="lang"))
    assert left(out.parent) == ["a.bin", "a.bin.meta", "a.bin.types"]
    assert [(out.parent / name).read_bytes() for name in left(out.parent)] == before


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system with room for `size`."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("room", ["64k", "16k"])
def test_a_full_disk(tmp_path: Path, tokenizer: Tokenizer, room: str) -> None:
    raw = tmp_path / "a.jsonl"
    raw.write_text("".join(json.dumps({"text": f"{ENGLISH} {n}", "lang": "en"}) + "\n" for n in range(800)))
    with small_disk(tmp_path / "disk", room) as disk:
        for type_key in (None, "lang"):
            with pytest.raises(DataError, match=r"a\.bin: the disk is full: nothing was left here"):
                tokenize_file(TokenizeSpec(raw, disk / "a.bin", tokenizer.path, type_key=type_key))
            assert left(disk) == []


def test_a_file_that_may_not_grow(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A limit of the system's on files, in a process of its own; needs no right to mount."""
    raw = tmp_path / "a.txt"
    raw.write_text("".join(f"line {n} of some length\n" for n in range(4000)))

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    command = [sys.executable, "-m", "evo_core.data", "tokenize", str(raw), "--output", str(tmp_path / "out" / "a.bin")]
    done = subprocess.run(
        [*command, "--tokenizer", str(tokenizer.path)], capture_output=True, text=True, preexec_fn=limited
    )
    assert done.returncode == 2
    assert "a.bin: the file would be larger than is allowed" in done.stderr
    assert left(tmp_path / "out") == []


def test_what_cannot_be_written(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "a.txt"
    raw.write_text("text\n")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        tokenize_file(TokenizeSpec(raw, tmp_path / "file" / "a.bin", tokenizer.path))

    def broken(self: BinWriter, line: bytes, tokens: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(BinWriter, "write_line", broken)
    with pytest.raises(DataError, match=r"a\.bin: it cannot be written \(Input/output error\)"):
        tokenize_file(TokenizeSpec(raw, tmp_path / "out" / "a.bin", tokenizer.path))
    assert left(tmp_path / "out") == []


def test_a_huge_line_ends_soon_and_is_not_kept(tmp_path: Path) -> None:
    """200 MB without a newline, of which the reader may hold but little."""
    raw = tmp_path / "a.txt"
    with raw.open("wb") as file:
        file.write(b"first\n")
        file.truncate(200_000_000)
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    code = (
        "import resource, sys\n"
        "from evo_core.data.raw.documents import read_documents\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "reader = read_documents(sys.argv[1], on_error='skip')\n"
        "assert list(reader) == ['first', 'last'], 'documents'\n"
        "assert str(reader.first_error).startswith(sys.argv[1] + ':2: a line of more than 16,777,216 bytes')\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "assert grown < 64 << 10, f'{grown} KiB'\n"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code, str(raw)], check=True)
    assert time.monotonic() - began < 60

"""Raw text files: every format, both readings, and what is said about wrong ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from evo_core.data.raw.documents import read_documents
from evo_core.errors import DataError

DOCUMENTS = ["first\n  line", "第二个，文档。", "third"]


def _plain(content: bytes) -> bytes:
    return content


def _zst(content: bytes) -> bytes:
    """Two frames, as a file appended to has."""
    middle = len(content) // 2
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (content[:middle], content[middle:]))


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {"": _plain, ".gz": gzip.compress, ".zst": _zst}


def _file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _jsonl(records: list) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_same_documents_from_every_format(tmp_path: Path, compression: str) -> None:
    compress = COMPRESSIONS[compression]
    records = [{"id": 1, "text": text} for text in DOCUMENTS]
    jsonl = _file(tmp_path, f"a.jsonl{compression}", compress(_jsonl(records)))
    listed = _file(tmp_path, f"a.json{compression}", compress(json.dumps(records).encode()))
    assert list(read_documents(jsonl)) == list(read_documents(listed)) == DOCUMENTS
    text = _file(tmp_path, f"a.txt{compression}", compress("one \n\n \t\n  二\r\nthree".encode()))
    assert list(read_documents(text)) == ["one", "二", "three"]


def test_lines_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evo_core.data.raw.bytes.CHUNK", 5)
    path = _file(tmp_path, "a.txt", "\ufeffabcdefghijkl\nmno\r\np\rqr\n\nstuvwxyz".encode())
    assert list(read_documents(path)) == ["abcdefghijkl", "mno", "p", "qr", "stuvwxyz"]


def test_text_keys_are_joined(tmp_path: Path) -> None:
    path = _file(tmp_path, "a.jsonl", _jsonl([{"title": "T", "body": "B", "text": "no"}]))
    assert list(read_documents(path, ("title", "body"))) == ["T\nB"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_documents_without_text_are_passed_over_and_counted(name: str, tmp_path: Path) -> None:
    records: list[Any] = [{"text": ""}, {"text": " \n"}, {"text": None}, {"text": []}, {"text": [""]}, {"text": "x"}]
    content = _jsonl(records) + b"\n\n" if name == "a.jsonl" else json.dumps(records).encode()
    documents = read_documents(_file(tmp_path, name, content))
    assert list(documents) == ["x"]
    assert (documents.skipped, documents.blank) == (0, 5)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_what_python_calls_json(name: str, tmp_path: Path) -> None:
    """Numbers that are none, and half a character where no text is taken from."""
    fields = '"a": NaN, "b": [-Infinity, Infinity], "c": "\\ud83d"'
    lines = [f'{{"text": "你好 {n}", {fields}}}' for n in range(3)]
    content = "\n".join(lines) if name == "a.jsonl" else f"[{','.join(lines)}]"
    assert list(read_documents(_file(tmp_path, name, content.encode()))) == ["你好 0", "你好 1", "你好 2"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_lines_of_text_are_joined(name: str, tmp_path: Path) -> None:
    record = {"title": "t", "paragraphs": ["line one", "line two"], "note": None}
    documents = read_documents(_file(tmp_path, name, json.dumps(record).encode()), ("title", "paragraphs", "note"))
    assert list(documents) == ["t\nline one\nline two"]


def test_mode_internevo_reads_json_as_internevos_tool(tmp_path: Path) -> None:
    record = {"text": "你好", "n": [1, 2]}
    jsonl = _file(tmp_path, "a.jsonl", b'{"text":"a"}\r\n\n{"text":"b"}')
    assert list(read_documents(jsonl, mode="internevo")) == ['{"text":"a"}\n', "\n", '{"text":"b"}']
    listed = _file(tmp_path, "a.json", json.dumps([record, "x"], ensure_ascii=False).encode())
    assert list(read_documents(listed, mode="internevo")) == ['{"text": "\\u4f60\\u597d", "n": [1, 2]}', '"x"']
    text = _file(tmp_path, "a.txt", b" a \n\nb")
    assert list(read_documents(text, mode="internevo")) == ["a", "b"]


RECORD = b'{"text": "good"}\n'

# name: (content, what is said, line, good documents that are left when it is skipped; None: it cannot be)
WRONG = {
    "bytes.txt": (b"good\n\xff\xfe\n", "not UTF-8 at byte 0", 2, 1),
    "bytes.jsonl": (RECORD + b'{"text": "\xff"}\n', "not UTF-8", 2, 1),
    "cut.jsonl": (RECORD + RECORD[:9], "not JSON, or cut off", 2, 1),
    "field.jsonl": (b"\n" + RECORD + b'{"txt": "x"}\n', "no field 'text' \\(its fields: 'txt'\\)", 3, 1),
    "number.jsonl": (b'{"text": 3}\n', "'text' is not text", 1, 0),
    "list.jsonl": (b"[1]\n" + RECORD, "expected an object", 1, 1),
    "cut.json": (b'[{"text": "a"},\n {"te', "cut off", 2, None),
    "bytes.json": (b'[{"text": "\xff"}]', "not UTF-8", 1, None),
    "object.json": (b'{"txt": "a"}', "record 1: there is no field 'text'", None, 0),
    "word.json": (b'"text"', "record 1: expected an object", None, 0),
    "null.json": (b"null", "record 1: expected an object", None, 0),
    "half.jsonl": (b'{"text": "\\ud83d"}\n' + RECORD, "half a character", 1, 1),
    "half of lines.json": (b'[{"text": ["a", "\\ud83d"]}]', "record 1: half a character", None, 0),
    "lines.json": (b'[{"text": ["a", 3]}]', "record 1: the field 'text' is not text", None, 0),
    "nan.jsonl": (b'{"text": NaN}\n', "'text' is not text", 1, 0),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000 + b"\n" + RECORD, "not JSON", 1, 1),
    "digits.jsonl": (b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n" + RECORD, "not JSON", 1, 1),
    "field.json": (b'[{"text": "a"}, {}]', "record 2: there is no field 'text'", None, 1),
    "cut.txt.gz": (gzip.compress(b"good\n" * 999)[:-9], "archive is cut off", None, None),
    "not.txt.gz": (b"plain", "not a readable .gz", None, None),
    "cut.txt.zst": (zstandard.ZstdCompressor().compress(b"good\n" * 99999)[:-9], "archive is cut off", None, None),
    "not.txt.zst": (b"plain text", "not a readable .zst", None, None),
    "report.pdf": (b"", "no format is known", None, None),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, name: str) -> None:
    content, message, line, left = WRONG[name]
    path = _file(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as raised:
        list(read_documents(path))
    assert (raised.value.file, raised.value.line) == (path, line)
    if left is None:
        with pytest.raises(DataError, match=message):
            list(read_documents(path, on_error="skip"))
    else:
        documents = read_documents(path, on_error="skip")
        assert len(list(documents)) == left
        assert documents.skipped == 1
        assert str(raised.value) == str(documents.first_error)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_documents(tmp_path / "a.txt")


def _long_window(content: bytes) -> bytes:
    options = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True, compression_level=3)
    packing = zstandard.ZstdCompressor(compression_params=options).compressobj()  # size unknown, as in a pipe
    return packing.compress(content) + packing.flush()


_SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0skip"
_FRAME = zstandard.ZstdCompressor().compress(b"good\n" * 999)
ARCHIVES = {
    "long.txt.zst": (_long_window(b"good\n" * 999), 999),
    "two.txt.zst": (_FRAME + _long_window(b"good\n") + _FRAME, 1999),
    "skippable.txt.zst": (_SKIPPABLE + _FRAME + _SKIPPABLE + _FRAME + _SKIPPABLE, 1998),
    "nothing.txt.zst": (_SKIPPABLE, 0),
    "two.txt.gz": (gzip.compress(b"good\n") + gzip.compress(b"good\n") + bytes(64), 2),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_several_parts(name: str, tmp_path: Path) -> None:
    content, count = ARCHIVES[name]
    path = _file(tmp_path, name, content)
    assert list(read_documents(path)) == ["good"] * count
    if count:
        broken = {content[:-1]: "cut off", content + b"rubbish": r"not a readable \.(zst|gz) archive"}
        for bad, message in broken.items():
            with pytest.raises(DataError, match=message):
                list(read_documents(_file(tmp_path, name, bad if name != "two.txt.gz" else bad.rstrip(b"\0"))))

"""`evo data shard` as a person runs it, and bad input: a clear error, and nothing left behind."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from typer.testing import CliRunner

from evo_core.data.commands import app
from evo_core.data.commands.shard import read_type_map
from evo_core.data.shards.format import BinWriter
from evo_core.errors import DataError
from tests.data.corpora import numbered, read_bin, write_bin

DOCUMENTS = numbered(120)


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["shard", *map(str, words)])


def error(*words: str | Path) -> str:
    """The message of a run that failed."""
    result = run(*words)
    assert isinstance(result.exception, DataError), result.output
    return str(result.exception)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    folder = tmp_path / "tokens"
    write_bin(folder / "en" / "a.bin", DOCUMENTS[:50])
    write_bin(folder / "en" / "deep" / "b.bin", DOCUMENTS[50:60])
    write_bin(folder / "cn" / "c.bin", DOCUMENTS[60:])
    return folder


def test_a_folder_of_token_files(tokens: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(tokens, "--output", out, "--valid-fraction", "0.2", "--shard-tokens", "100")
    assert result.exit_code == 0, result.output
    statistics = json.loads((out / "statistics.json").read_text())
    assert {name: of_type["documents"] for name, of_type in statistics["types"].items()} == {"cn": 60, "en": 60}
    shards = {shard["path"]: shard for shard in statistics["shards"]}
    assert set(shards) == {p.relative_to(out).as_posix() for p in out.rglob("*.bin")}
    for path, shard in shards.items():
        assert shard["digest"] == blake3((out / path).read_bytes()).hexdigest()
        assert shard["documents"] == len(read_bin(out / path))
    assert {o for s in shards.values() for o in s["origins"]} == {"en/a", "en/deep/b", "cn/c"}
    assert sorted(d for path in shards for d in read_bin(out / path)) == DOCUMENTS
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["out", "tokens"]
    lines = result.output.splitlines()
    assert any(line.split()[:3] == ["en", "60", f"{statistics['types']['en']['tokens']:,}"] for line in lines)


def test_files_by_themselves_have_the_type_of_their_folder(tokens: Path, tmp_path: Path) -> None:
    result = run(tokens / "en" / "a.bin", tokens / "cn" / "c.bin", "--output", tmp_path / "out", "--valid-fraction", 0)
    assert result.exit_code == 0, result.output
    assert read_bin(tmp_path / "out" / "train" / "cn" / "train_000.bin") == DOCUMENTS[60:]


def test_types_by_map(tokens: Path, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("code: [en/deep/*, nothing/*]\nweb: '*/c.bin'\n")
    result = run(
        tokens, "--output", tmp_path / "out", "--valid-fraction", 0, "--type-map", "books=en/a.bin", "--type-map",
        tmp_path / "map.yaml",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "out" / "train").iterdir()) == ["books", "code", "web"]
    assert read_type_map(["a=x", "b=x", "c=y"]) == {"x": "a", "y": "c"}
    (tmp_path / "bad.yaml").write_text("en: 3\n")
    for given, message in {
        "nowhere.yaml": "neither TYPE=GLOB nor a readable file",
        str(tmp_path / "bad.yaml"): "the type 'en' has no pattern",
    }.items():
        with pytest.raises(DataError, match=message):
            read_type_map([given])


def test_copies_are_counted_in_the_table(tokens: Path, tmp_path: Path) -> None:
    write_bin(tokens / "en" / "again.bin", DOCUMENTS[:7])
    result = run(tokens, "--output", tmp_path / "out", "--dedup", "exact", "--valid-fraction", "0.2")
    assert result.exit_code == 0, result.output
    row = next(line.split() for line in result.output.splitlines() if line.split()[:1] == ["en"])
    assert row[-2:] == ["7", "0"]


@pytest.mark.parametrize("below", ["file", "file/deeper", "/proc"])
def test_an_output_that_cannot_be_made(tokens: Path, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / below / "out"
    message = error(tokens, "--output", out, "--valid-fraction", "0.2", "--shard-tokens", "100")
    assert message.startswith(f"{out}: it cannot be written (")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["file", "tokens"]


@pytest.mark.parametrize("name", ["a[b]", "[red]cn", ":smile:"])
def test_tables_show_a_type_as_it_is_named(tmp_path: Path, name: str) -> None:
    write_bin(tmp_path / "tokens" / name / "a.bin", DOCUMENTS)
    for words in (["shard", "--output", str(tmp_path / "out")], ["stats"]):
        result = CliRunner().invoke(app, [*words, str(tmp_path / "tokens")])
        assert result.exit_code == 0, result.output
        assert any(line.split()[:1] == [name] for line in result.output.splitlines())


def test_an_output_in_use(tokens: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(tokens, "--output", tmp_path / "empty", "--valid-fraction", "0.2").exit_code == 0
    assert "is in use" in error(tokens, "--output", tmp_path / "empty")
    (tmp_path / "file").write_text("")
    assert "is in use" in error(tokens, "--output", tmp_path / "file")
    assert "a file system is mounted there" in error(tokens, "--output", "/proc")


def _without_meta(path: Path) -> None:
    Path(f"{path}.meta").unlink()


def _meta_past_the_end(path: Path) -> None:
    meta = np.load(f"{path}.meta")
    meta[-1, 0] = path.stat().st_size + 5
    with Path(f"{path}.meta").open("wb") as file:
        np.save(file, meta)


def _wrong_count(path: Path) -> None:
    meta = np.load(f"{path}.meta")
    meta[3, 1] += 1
    with Path(f"{path}.meta").open("wb") as file:
        np.save(file, meta)


def _line(number: int, old: bytes, new: bytes) -> Any:
    def damage(path: Path) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        assert old in lines[number]
        lines[number] = lines[number].replace(old, new, 1)
        assert len(old) == len(new)
        path.write_bytes(b"".join(lines))

    return damage


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    "no meta": (_without_meta, r"a.bin.meta: a .bin needs its .bin.meta beside it"),
    "meta past the end": (_meta_past_the_end, r"a.bin.meta: offset \d+ is past the end of a.bin"),
    "wrong count": (_wrong_count, r"a.bin:4: .*tokens where the meta says"),
    "a letter": (_line(2, b"[", b"x"), r"a.bin:3: "),
    "no comma": (_line(0, b", ", b"  "), r"a.bin:1: "),
    "cut off": (_cut_off, r"a.bin:50: the last line has no end"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_token_files(tokens: Path, tmp_path: Path, damage: str) -> None:
    do, message = DAMAGE[damage]
    do(tokens / "en" / "a.bin")
    with pytest.raises(DataError, match=message):
        raise DataError(error(tokens, "--output", tmp_path / "out", "--valid-fraction", "0.2"))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["tokens"]


def test_ids_that_are_no_numbers(tokens: Path, tmp_path: Path) -> None:
    for wrong in (b"1, , 2", b", 1, 2", b"1, 2, ", b"1, a, 2", b"1, 2-3", b"1,  2 3"):
        path = tokens / "en" / "a.bin"
        count = wrong.count(b",") + 1
        path.write_bytes(b'{"tokens": [' + wrong + b"]}\n")
        with Path(f"{path}.meta").open("wb") as file:
            np.save(file, np.array([[0, count]]))
        assert "a.bin:1: " in error(tokens, "--output", tmp_path / "out"), wrong


def test_too_few_documents_for_a_split(tokens: Path, tmp_path: Path) -> None:
    write_bin(tokens / "ja" / "few.bin", [[1, 2]])
    assert "type ja: too few documents (1)" in error(tokens, "--output", tmp_path / "out", "--valid-fraction", "0.2")
    assert not (tmp_path / "out").exists()


def test_a_full_disk(tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = BinWriter.write_line, 0

    def until_full(self: BinWriter, line: bytes, count: int) -> None:
        nonlocal written
        written += 1
        if written > 80:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, line, count)

    monkeypatch.setattr(BinWriter, "write_line", until_full)
    assert "the disk is full" in error(tokens, "--output", tmp_path / "out", "--valid-fraction", "0.2")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["tokens"]


def test_what_cannot_be_meant(tokens: Path, tmp_path: Path) -> None:
    out = ("--output", tmp_path / "out")
    assert "name their tokenizer" in error(tokens, *out, "--route", "detect")
    assert "has no effect with --route field" in error(tokens, *out, "--route", "field", "--type-map", "a=b")
    assert "no such file or folder" in error(tmp_path / "nowhere", *out)
    (tmp_path / "empty").mkdir()
    assert "there is no .bin file here" in error(tmp_path / "empty", *out)
    assert "not among the types to take" in error(tokens, *out, "--types", "cn")

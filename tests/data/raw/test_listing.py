"""One listing of raw files for every command and step, on disk and in S3."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evo_core.data.commands import app
from evo_core.data.commands.tokenize import find_raw_files
from evo_core.data.raw.listing import LeftOut, Listing, find_files, list_folder
from evo_core.data.sft.records import record_files
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError, UserError
from evo_core.storage.listed import Listed
from tasks.raw.selection import list_files
from tests.data.corpora import read_bin
from tests.data.raw.raw_trees import LEFT_OUT, LISTED, make_raw_tree, upload
from tests.s3_server import S3Server

WITH_TEXT = [name for name in sorted(LISTED) if "empty" not in name]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_raw_tree(tmp_path)


def names(listing: Listing) -> list[str]:
    return [file.path for file in listing.files]


def below(root: Path | str, uris: list[str]) -> list[str]:
    return [uri.removeprefix(f"{root}/") for uri in uris]


def test_every_command_and_step_lists_the_same(tree: Path) -> None:
    assert names(list_folder(tree)) == sorted(LISTED)
    assert list_folder(tree).left_out.counts == LEFT_OUT
    assert names(list_files(str(tree), ["**/*.jsonl"])) == sorted(LISTED)
    assert names(find_files(f"{tree}/**")) == sorted(LISTED)
    assert names(find_files(f"{tree}/**/*.jsonl")) == sorted(LISTED)
    for given in (str(tree), f"local:{tree}/", f"file://{tree}", f"{tree}/**", f"{tree}/**/*.JsonL"):
        found, left_out = find_raw_files([given])
        assert below(tree, found) == WITH_TEXT
        assert left_out.counts == LEFT_OUT | {"empty": 1}
        assert below(tree, list(map(str, record_files(given)))) == WITH_TEXT


@pytest.mark.s3
def test_the_tree_in_s3_lists_the_same(tree: Path, s3: S3Server) -> None:
    bucket = s3.new_bucket()
    upload(tree, s3.client(), bucket, "some/raw")
    s3.client().put_object(Bucket=bucket, Key="some/raw/made-by-the-page/", Body=b"")
    s3.client().put_object(Bucket=bucket, Key="some/raw2/other.jsonl", Body=b"{}")
    endpoint = s3.endpoint.removeprefix("http://")
    for root in (f"s3://{bucket}/some/raw", f"boto3:s3://{bucket}.{endpoint}/some/raw"):
        assert names(list_folder(root)) == sorted(LISTED)
        assert list_folder(f"{root}/").left_out.counts == {"hidden": 4}
        assert names(list_files(root, ["**/*.jsonl"])) == sorted(LISTED)
        for given in (root, f"{root}/**"):
            assert below(root, find_raw_files([given])[0]) == WITH_TEXT
        odd = f"{root}/en/[x]*?.jsonl"
        assert find_raw_files([odd])[0] == [odd], "a key that is a pattern too"


def test_the_commands(tree: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    line = ("left out: ", "4 hidden (.git)", "2 linked again (en/loop)", "2 linked to nothing (gone.jsonl)")
    output = run(
        "tokenize", str(tree), "--output", str(tmp_path / "a.bin"), "--tokenizer", str(tokenizer.path), "--workers", "1"
    )
    assert f"{len(WITH_TEXT)} files, {len(WITH_TEXT)} documents" in output
    for words in line:
        assert words in output
    run(
        "tokenize",
        f"{tree}/**",
        "--output",
        str(tmp_path / "b.bin"),
        "--tokenizer",
        str(tokenizer.path),
        "--workers",
        "1",
    )
    assert read_bin(tmp_path / "a.bin") == read_bin(tmp_path / "b.bin")
    output = run("tokenize-sft", str(tree), str(tmp_path / "sft"), str(tokenizer.path), "--workers", "1")
    assert "4 hidden (.git)" in output
    assert "elsewhere/deep/x.Jsonl" in (tmp_path / "sft" / "origins.json").read_text()


def test_the_order_of_a_folder_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of two links names a folder follows from their names alone."""
    tree, scandir = make_raw_tree(tmp_path), os.scandir
    expected = list_folder(tree)
    for seed in range(5):

        class Shuffled(list):
            def __enter__(self) -> Shuffled:
                return self

            def __exit__(self, *error: object) -> None:
                pass

        def scan(path: Any, seed: int = seed, kind: type[list] = Shuffled) -> Any:
            with scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            random.Random(seed).shuffle(found)
            return kind(found)

        monkeypatch.setattr(os, "scandir", scan)
        found = list_folder(tree)
        assert (found.files, found.left_out) == (expected.files, expected.left_out)


def test_a_name_that_is_not_utf8_is_refused_when_listed(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    (root / "cn").mkdir(parents=True)
    (root / "a.txt").write_text("text\n")
    bad = os.fsencode(root / "cn") + b"/l\xe9.txt"
    Path(os.fsdecode(bad)).write_text("text\n")
    for look in (
        lambda: list_files(str(root), ["**/*.txt"]),
        lambda: find_raw_files([str(root)]),
        lambda: find_raw_files([f"{root}/**"]),
        lambda: find_raw_files([os.fsdecode(bad)]),
    ):
        with pytest.raises(UserError, match=r"cn/l\\xe9\.txt: .*this file's name is not UTF-8 \(rename it") as caught:
            look()
        str(caught.value).encode()
    assert names(list_files(str(root), ["**/*.txt"], ["cn/*"])) == ["a.txt"], "nobody asks for it"
    Path(os.fsdecode(bad)).rename(os.fsdecode(bad).replace(".txt", ".md"))
    assert below(root, find_raw_files([str(root)])[0]) == ["a.txt"]


@pytest.mark.s3
def test_odd_keys(s3: S3Server) -> None:
    bucket = s3.new_bucket()
    for key in ("raw/a::b.txt", "raw/en/a?versionId=1.txt", "raw/%2e.txt"):
        s3.client().put_object(Bucket=bucket, Key=key, Body=b"text\n")
    found, _ = find_raw_files([f"s3://{bucket}/raw"])
    assert [uri.rpartition("/")[2] for uri in found] == ["%2e.txt", "a::b.txt", "a?versionId=1.txt"]


def test_an_empty_part_of_a_key_is_refused() -> None:
    key = Listed("en//a.txt", "s3://bucket/raw/en//a.txt", size=5, modified=0.0)  # a file system has no such names
    with pytest.raises(UserError, match=r"en//a\.txt.* has an empty part"):
        Listing([key], LeftOut()).check_names()


def test_what_there_is_not(tmp_path: Path) -> None:
    (tmp_path / ".only").mkdir()
    with pytest.raises(DataError, match=r"none that matches \(left out: 1 hidden \(\.only\)\)"):
        find_files(str(tmp_path))
    with pytest.raises(DataError, match="there is no such file"):
        find_files(f"{tmp_path}/nowhere/*.txt")
    with pytest.raises(UserError, match=r"INPUT: .*no place is known by"):
        find_raw_files(["gs://bucket/x.txt"])
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        find_raw_files([str(tmp_path)])


def test_a_pattern_does_not_look_deeper_than_it_reaches(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "x.txt").write_text("x")
    (tmp_path / "a" / "b" / "y.txt").write_text("y")
    assert names(list_folder(tmp_path, depth=2)) == ["a/x.txt"]
    assert names(find_files(f"{tmp_path}/*/*.TXT")) == ["a/x.txt"]
    (tmp_path / "[a]").mkdir()
    (tmp_path / "[a]" / "z.txt").write_text("z")
    assert names(find_files(f"{tmp_path}/[a]")) == ["z.txt"], "a folder that is a pattern too"

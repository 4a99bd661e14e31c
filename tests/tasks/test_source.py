"""The listing of raw files: what counts, what is remembered, and what a store of objects says."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from evo_core.errors import ConfigError
from tasks.raw.selection import list_files
from tasks.source import Files, Params
from tasks.store.digests import DigestMemory
from tests.data.raw.raw_trees import LEFT_OUT, LISTED, make_raw_tree
from tests.tasks.corpus import Corpus, LocalFiles, S3Files, documents

TREE = [
    "a.txt", "b.jsonl", "b.jsonl.gz", "en/a.txt", "en/b.TXT", "en/deep/er/c.txt", "en/deep/d.md",
    "cn/[x].txt", "cn/x.txt", "cn/xy.txt", "cn/一.txt", "a+b/(c).txt", "notes.txt.bak", "en.txt/inner.txt",
]  # fmt: skip
PATTERNS = [
    "**/*.txt", "*.txt", "*/*.txt", "en/**/*.txt", "**/deep/*", "**/x?.txt", "cn/[a-x].txt", "cn/[!a-x].txt",
    "cn/[[]x].txt", "**/*.jsonl*", "a+b/*", "*", "**/*", "en/*/er/c.txt", "nothing/**/*.txt", "**/[一-三].txt",
]  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    for name in TREE:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mean_what_pathlib_says(tree: Path, pattern: str) -> None:
    (tree / "en" / "b.TXT").rename(tree / "en" / "b.txt")  # pathlib tells cases apart before Python 3.12
    theirs = sorted(p.relative_to(tree).as_posix() for p in tree.glob(pattern) if p.is_file())
    (tree / "en" / "b.txt").rename(tree / "en" / "b.TXT")
    theirs = sorted(name.replace("en/b.txt", "en/b.TXT") for name in theirs)
    assert [file.path for file in list_files(str(tree), [pattern]).files] == theirs
    rest = [file.path for file in list_files(str(tree), ["**/*"], [pattern]).files]
    assert sorted(rest + theirs) == sorted(TREE)


def test_links_to_folders_are_followed_once(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "new.txt").write_text("x")
    (tree / "ja").symlink_to(tmp_path / "elsewhere")
    (tree / "loop").symlink_to(tree)
    found = [file.path for file in list_files(str(tree), ["**/*.txt"]).files]
    assert "ja/new.txt" in found
    assert not any(path.startswith("loop/") for path in found)


def digest(root: Path, memory: Path, **params: Any) -> tuple[str, dict[str, Any]]:
    return Files().digest(Params.model_validate({"root": str(root), **params}), memory)


def test_what_is_remembered(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.store.digests as digests

    memory = tmp_path / "state" / "inventory.parquet"
    first, _ = digest(tree, memory)
    read: list[Path] = []
    real = digests.digest_file
    monkeypatch.setattr(digests, "digest_file", lambda path: read.append(path) or real(path))
    assert digest(tree, memory)[0] == first
    assert read == []
    (tree / "a.txt").write_text("other")
    second, _ = digest(tree, memory)
    assert second != first
    assert read == [tree / "a.txt"]
    # The same content at another time is the same corpus; an old time with other content is seen by its size.
    os.utime(tree / "en" / "a.txt", ns=(1, 1))
    assert digest(tree, memory)[0] == second
    memory.write_bytes(b"damaged")
    assert digest(tree, memory)[0] == second, "a lost memory costs time only"
    assert DigestMemory(memory).of(tree / "a.txt").digest == real(tree / "a.txt").digest


def test_young_files_wait(tree: Path, tmp_path: Path) -> None:
    for path in tree.rglob("*"):
        os.utime(path, (0, time.time() - 7200))
    whole, _ = digest(tree, tmp_path / "m", settle="1h")
    (tree / "en" / "new.txt").write_text("being written")
    assert digest(tree, tmp_path / "m", settle="1h")[0] == whole
    assert digest(tree, tmp_path / "m")[0] != whole


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"settle": "1h"}, r"1 files under .* are younger than settle \(wait until they are settled.*1 not matched"),
        ({"include": ["**/*.md"]}, "every file under .* that matches is empty"),
        ({"exclude": ["**"]}, r"no file with text under .* left out: 1 hidden \(\.x\.txt\), 2 not matched"),
    ],
)
def test_why_a_corpus_is_empty_is_said(tmp_path: Path, params: dict[str, Any], why: str) -> None:
    for name, text in {"a.txt": "text", "b.md": "", ".x.txt": "text"}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=f"root: the corpus is empty: {why}"):
        digest(tmp_path, tmp_path / "m", **params)


def test_what_is_left_out_is_in_the_statistics(tmp_path: Path) -> None:
    root = make_raw_tree(tmp_path)
    corpus = Corpus(tmp_path, LocalFiles(root))
    no_valid = "steps.shards.params.valid_fraction=0"
    dataset = corpus.run(no_valid)
    raw = corpus.store.artifact("raw", corpus.plan(no_valid).step("raw").key)
    statistics = raw.manifest["statistics"]
    assert (statistics["files"], statistics["left_out"]) == (len(LISTED), sum(LEFT_OUT.values()))
    assert len(documents(dataset)) == len([name for name in LISTED if "empty" not in name])


def test_documents_are_only_bounded_where_lines_are_documents(tmp_path: Path) -> None:
    for name, text in {
        "en/a.txt": "1\n2\n3",
        "cn/a.json": '[{"text": "1"}, {"text": "2"}]',
        "ja/a.jsonl": "{}",
    }.items():
        (tmp_path / "raw" / name).parent.mkdir(parents=True)
        (tmp_path / "raw" / name).write_text(text)
    _, facts = digest(tmp_path / "raw", tmp_path / "m")
    assert facts["lines_by_type"] == {"cn": None, "en": 3, "ja": 1}


@pytest.mark.s3
def test_objects_are_known_by_their_etag(s3: Any, tmp_path: Path) -> None:
    files = S3Files(s3)
    files.write({"en/a.txt": "one\n", "en/deep/b.txt": "two\n", "en/c.md": "no\n", "cn/d.txt": "three\n"})
    listed = list_files(files.root, ["**/*.txt"], ["en/deep/*"]).files
    assert [file.path for file in listed] == ["cn/d.txt", "en/a.txt"]
    head = files.client.head_object(Bucket=files.bucket, Key="raw/en/a.txt")
    assert (listed[1].tag, listed[1].size) == (head["ETag"].strip('"'), 4)
    assert listed[1].uri == f"{files.root}/en/a.txt"
    params = Params.model_validate({"root": files.root})
    first, facts = Files().digest(params, tmp_path / "m")
    assert facts["lines_by_type"] == {"cn": None, "en": None}
    assert not (tmp_path / "m").exists(), "there is nothing to remember"
    files.write({"en/a.txt": "ONE\n"})
    second, _ = Files().digest(params, tmp_path / "m")
    assert second != first
    files.write({"en/a.txt": "one\n"})
    assert Files().digest(params, tmp_path / "m")[0] == first
    with pytest.raises(ConfigError, match="the corpus is empty"):
        Files().digest(Params.model_validate({"root": files.root, "settle": "1h"}), tmp_path / "m")


@pytest.mark.s3
def test_wrong_credentials(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = S3Files(s3)
    files.write({"en/a.txt": "one\n"})
    params = Params.model_validate({"root": files.root})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ConfigError, match=r"root: s3://.* does not take these credentials .*AWS_ACCESS_KEY_ID"):
        Files().digest(params, tmp_path / "m")

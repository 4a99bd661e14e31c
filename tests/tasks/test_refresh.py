"""The refresh of a dataset: only what is new or changed is read, and the result is that of a run from nothing."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evo_core.errors import ConfigError
from flows.pipeline.engine import run_plan
from flows.pipeline.failures import StepFailed
from tasks.store import Artifact
from tests.flows.pipeline.conftest import Recorder
from tests.tasks.corpus import Corpus, LocalFiles, S3Files, documents, inodes, manifest, texts

FILES = 80
MANY = 200
NEW = {"en/new/a.txt": "a new file\nof two lines\n", "cn/new/b.txt": "another\n", "en/new/c.txt": "and a third\nnew\n"}


class Opened:
    """Paths opened by this process, while it is told to look."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.looks = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.looks and event == "open" and isinstance(args[0], str | bytes):
            self.paths.append(args[0] if isinstance(args[0], str) else args[0].decode())

    def __enter__(self) -> list[str]:
        self.paths, self.looks = [], True
        return self.paths

    def __exit__(self, *exc: object) -> None:
        self.looks = False


OPENED = Opened()  # a hook cannot be taken away: one for all tests


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalFiles | S3Files]:
    if request.param == "s3":
        yield S3Files(request.getfixturevalue("s3"))
    else:
        yield LocalFiles(tmp_path / "raw")


def from_nothing(tmp_path: Path, files: LocalFiles | S3Files, *overrides: str) -> Artifact:
    return Corpus(tmp_path / "again", files, store=tmp_path / "again" / f"store{len(overrides)}").run(*overrides)


def new_inodes(before: Artifact, after: Artifact) -> set[str]:
    return {path for path, inode in inodes(after).items() if inode not in inodes(before).values()}


def test_a_refresh_costs_what_is_new(files: LocalFiles | S3Files, tmp_path: Path) -> None:
    files.write(texts(range(FILES)))
    corpus = Corpus(tmp_path, files)
    first = corpus.run()
    lines = sorted(line for text in texts(range(FILES)).values() for line in text.splitlines())
    assert documents(first) == lines

    files.write(NEW)
    with OPENED as opened:
        second = corpus.run()
    assert corpus.tokens.statistics["files_tokenized"] == len(NEW)
    raw = [path for path in opened if path.startswith(files.root)]
    assert not [path for path in raw if not path.endswith(tuple(NEW))], "an unchanged raw file was opened"
    objects = {part for path in opened if "/objects/" in path for part in path.split("/") if len(part) == 64}
    assert len(objects) == len(NEW), "objects of unchanged files were opened"
    assert len(new_inodes(first, second)) <= 4
    assert second.statistics["shards_kept"] == len(inodes(first))

    new = [line for text in NEW.values() for line in text.splitlines()]
    assert documents(second) == sorted(lines + new)
    assert documents(first) == lines, "the older version is as it was"
    again = from_nothing(tmp_path, files)
    assert documents(again) == documents(second)
    assert again.key == second.key, "the key knows nothing of the history"
    assert again.statistics["types"] == second.statistics["types"]


def test_the_key_does_not_depend_on_the_root(files: LocalFiles | S3Files, tmp_path: Path) -> None:
    files.write(texts(range(5)))
    here = Corpus(tmp_path / "a", files).plan()
    if isinstance(files, S3Files):
        elsewhere: LocalFiles | S3Files = S3Files.__new__(S3Files)
        elsewhere.client, elsewhere.bucket = files.client, files.bucket
        for name, text in texts(range(5)).items():
            files.client.put_object(Bucket=files.bucket, Key=f"moved/{name}", Body=text.encode())
        elsewhere.root = f"s3://{files.bucket}/moved"
    else:
        elsewhere = LocalFiles(tmp_path / "moved")
        elsewhere.write(texts(range(5)))
    there = Corpus(tmp_path / "b", elsewhere).plan()
    assert [step.key for step in here.steps] == [step.key for step in there.steps]


def test_changed_and_deleted_files(files: LocalFiles | S3Files, tmp_path: Path) -> None:
    files.write(texts(range(60)))
    corpus = Corpus(tmp_path, files)
    first = corpus.run()
    deleted, changed = list(texts(range(60)))[7], list(texts(range(60)))[31]
    files.delete(deleted)
    files.write({changed: "changed\n"})
    second = corpus.run()
    assert corpus.tokens.statistics["files_tokenized"] == 1
    wanted = texts(range(60)) | {changed: "changed\n"}
    del wanted[deleted]
    assert documents(second) == sorted(line for text in wanted.values() for line in text.splitlines())
    before = {shard["path"]: shard for shard in manifest(first)["shards"]}
    touched = {path for path, shard in before.items() if {deleted, changed} & set(shard["origins"])}
    kept = set(inodes(first).values()) & set(inodes(second).values())
    assert {inodes(first)[path] for path in set(before) - touched} == kept
    assert any(deleted in shard["origins"] for shard in manifest(first)["shards"])
    assert not any(deleted in shard["origins"] for shard in manifest(second)["shards"])


def test_versions_are_published_and_stay(files: LocalFiles | S3Files, tmp_path: Path) -> None:
    files.write(texts(range(20)))
    corpus = Corpus(tmp_path, files)
    first = corpus.run()
    assert [step.action for step in corpus.plan().steps] == ["reuse"] * 3
    files.write(NEW)
    second = corpus.run()
    versions = corpus.store.refs.versions("corpus")
    assert [corpus.store.refs.resolve(f"ref:corpus@{v}")["key"] for v in versions] == [first.key, second.key]
    assert corpus.store.refs.resolve("ref:corpus")["key"] == second.key
    # The older version goes: the newer one's shards are links of their own.
    before = documents(second)
    shutil.rmtree(first.home)
    assert documents(second) == before


def test_a_file_that_changes_while_it_is_read(files: LocalFiles | S3Files, tmp_path: Path) -> None:
    files.write(texts(range(5)))
    corpus = Corpus(tmp_path, files)
    plan = corpus.plan()

    class ChangesAFile(Recorder):
        def on_step_start(self, step: Any) -> None:
            if step.name == "tokens":
                files.write({"en/000/00001.txt": "other\n"})

    with pytest.raises(StepFailed, match=r"00001.txt.* changed since it was listed"):
        run_plan(plan, corpus.store, ChangesAFile(), threading.Event())
    done = list((tmp_path / "store" / "objects").rglob("object.json"))
    assert len(done) <= 4, "the changed file is not taken for the listed one"
    assert len(corpus.run().statistics["types"]) == 2


def test_the_manifest_lists_every_shard(tmp_path: Path) -> None:
    from blake3 import blake3

    files = LocalFiles(tmp_path / "raw")
    files.write(texts(range(30)))
    corpus = Corpus(tmp_path, files)
    corpus.run()
    files.write(NEW)
    dataset = corpus.run()
    shards = {shard["path"]: shard for shard in manifest(dataset)["shards"]}
    assert set(shards) == set(inodes(dataset))
    in_store = {file["path"]: file for file in dataset.manifest["files"]}
    for path, shard in shards.items():
        content = (dataset.path / path).read_bytes()
        assert shard["digest"] == in_store[path]["digest"] == blake3(content).hexdigest()
        assert in_store[f"{path}.meta"]["digest"] == blake3((dataset.path / f"{path}.meta").read_bytes()).hexdigest()
        assert (shard["bytes"], shard["documents"]) == (len(content), content.count(b"\n"))
    assert {o for shard in shards.values() for o in shard["origins"]} == set(texts(range(30))) | set(NEW)


def test_a_forced_rebuild_takes_nothing_over_from_what_it_replaces(tmp_path: Path) -> None:
    from flows.pipeline.plan import make_plan
    from flows.pipeline.schema import load_pipeline

    files = LocalFiles(tmp_path / "raw")
    files.write(texts(range(10)))
    corpus = Corpus(tmp_path, files)
    first = corpus.run()
    before = inodes(first)
    plan = make_plan(load_pipeline(corpus.pipeline), corpus.store, force=["shards"])
    run_plan(plan, corpus.store, Recorder(), threading.Event())
    second = corpus.store.artifact("shards", plan.step("shards").key)
    assert not set(before.values()) & set(inodes(second).values())


def test_small_files_make_shards_of_the_target_size(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "raw")
    files.write(texts(range(MANY)))
    corpus = Corpus(tmp_path, files)
    dataset = corpus.run()
    shards = manifest(dataset)["shards"]
    assert sum(shard["tokens"] for shard in shards) == corpus.tokens.statistics["tokens"]
    for split in ("train", "valid"):
        for name in ("cn", "en"):
            sizes = [s["tokens"] for s in shards if (s["split"], s["type"]) == (split, name)]
            assert all(1000 <= size < 1020 for size in sizes[:-1]), "closed by the document that fills it"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_files(files: LocalFiles | S3Files, tmp_path: Path) -> None:
    files.write(texts(range(10_000)))
    corpus = Corpus(tmp_path, files)
    settings = ["steps.shards.params.shard_tokens=100000"]
    first = corpus.run(*settings)
    assert sum(shard["tokens"] for shard in manifest(first)["shards"]) == corpus.tokens.statistics["tokens"]
    files.write(NEW)
    with OPENED as opened:
        second = corpus.run(*settings)
    assert corpus.tokens.statistics["files_tokenized"] == len(NEW)
    store = [path for path in opened if path.startswith((files.root, str(corpus.store.root)))]
    assert len(store) < 500, "256 folders of objects, and a few files"
    assert len(new_inodes(first, second)) <= 4
    assert documents(second) == documents(from_nothing(tmp_path, files, *settings))


def test_an_object_that_is_gone_is_made_again(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "raw")
    files.write(texts(range(10)))
    corpus = Corpus(tmp_path, files)
    corpus.run()
    shutil.rmtree(next((tmp_path / "store" / "objects").glob("*/*")))
    files.write(NEW)
    dataset = corpus.run()
    assert corpus.tokens.statistics["files_tokenized"] == len(NEW) + 1
    assert len(documents(dataset)) == 40 + 5


def test_two_corpora_in_one_store_each_start_from_their_own(tmp_path: Path) -> None:
    one, other = LocalFiles(tmp_path / "one"), LocalFiles(tmp_path / "other")
    one.write(texts(range(30)))
    other.write(texts(range(1000, 1030)))
    first = Corpus(tmp_path, one)
    second = Corpus(tmp_path / "b", other, store=first.store.root)
    version = first.run()
    second.run()
    one.write(NEW)
    assert first.run().statistics["shards_kept"] == len(inodes(version))


@pytest.mark.s3
def test_a_root_that_is_not_there(s3: Any, tmp_path: Path) -> None:
    files = S3Files(s3)
    corpus = Corpus(tmp_path, files)
    with pytest.raises(ConfigError, match=r"refresh.yaml:5: steps.raw.params.root: s3://.*: there is nothing here"):
        corpus.plan()
    with pytest.raises(ConfigError, match="s3://no-such-bucket/raw: there is no bucket no-such-bucket"):
        corpus.plan("steps.raw.params.root=s3://no-such-bucket/raw")
    files.write({"en/a.md": "not text"})
    with pytest.raises(ConfigError, match="the corpus is empty"):
        corpus.plan()

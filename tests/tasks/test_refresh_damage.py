"""A refresh in a store where something is damaged: it says so or goes round it, and never takes it over."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.pipeline.engine import run_plan
from flows.pipeline.failures import StepFailed
from flows.pipeline.plan import make_plan
from flows.pipeline.schema import load_pipeline
from tests.flows.pipeline.conftest import Recorder
from tests.tasks.corpus import Corpus, LocalFiles, documents, texts


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    files = LocalFiles(tmp_path / "raw")
    files.write(texts(range(12)))
    return Corpus(tmp_path, files)


def lines(numbers: range) -> list[str]:
    return sorted(line for text in texts(numbers).values() for line in text.splitlines())


OBJECTS: dict[str, Callable[[Path], object]] = {
    "removed": shutil.rmtree,
    "without its tokens": lambda folder: (folder / "tokens.bin").unlink(),
    "cut off": lambda folder: (folder / "tokens.bin").write_bytes((folder / "tokens.bin").read_bytes()[:20]),
    "without its meta": lambda folder: (folder / "tokens.bin.meta").unlink(),
    "record is no JSON": lambda folder: (folder / "object.json").write_text("{"),
}


@pytest.mark.parametrize("how", OBJECTS)
def test_damaged_tokens_of_one_file_are_made_anew_by_force(corpus: Corpus, how: str) -> None:
    corpus.run("steps.shards.params.seed=1")
    OBJECTS[how](next(folder.parent for folder in corpus.store.root.glob("objects/*/*/object.json")))
    if how != "record is no JSON":  # counts are in the index; the tokens are whole
        with pytest.raises(StepFailed, match=r"objects/.*--force tokens"):
            corpus.run("steps.shards.params.seed=2")
    plan = make_plan(load_pipeline(corpus.pipeline), corpus.store, force=["tokens"])
    run_plan(plan, corpus.store, Recorder(), threading.Event())
    assert documents(corpus.run()) == lines(range(12))
    assert corpus.tokens.statistics["files_tokenized"] == 1


@pytest.mark.parametrize("what", ["manifest", "shard", "shard cut off"])
def test_a_refresh_takes_nothing_over_from_a_damaged_version(corpus: Corpus, what: str) -> None:
    first = corpus.run()
    shard = next(first.path.glob("train/*/*.bin"))
    if what == "manifest":
        (first.home / "manifest.json").unlink()
        (first.home / "manifest.json").write_text("{")
    elif what == "shard":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-50])
    corpus.files.write(texts(range(12, 15)))
    assert documents(corpus.run()) == lines(range(15))

"""`data.tokenize` in a pipeline: the same bytes whoever does the work, and files that are tokenized once."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from flows.pipeline.engine import run_plan
from flows.pipeline.failures import StepFailed
from tasks.launch.launcher import Stopped
from tasks.store import open_store
from tests.flows.pipeline.conftest import Recorder
from tests.tasks.corpus import Corpus, LocalFiles, texts


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    files = LocalFiles(tmp_path / "raw")
    files.write(texts(range(12)))
    return files


def objects(store: Path) -> dict[str, bytes]:
    """Everything in the objects of a store, by path."""
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in (store / "objects").rglob("*") if p.is_file()}


@pytest.mark.parametrize("runtime", ["workers=1", "workers=2", "dask=local"])
def test_the_same_bytes_whoever_tokenizes(tmp_path: Path, files: LocalFiles, runtime: str) -> None:
    here = Corpus(tmp_path / "here", files)
    here.run()
    there = Corpus(tmp_path / "there", files)
    there.run(f"steps.tokens.runtime.{runtime}")
    assert objects(here.store.root) == objects(there.store.root)
    assert len(objects(here.store.root)) == 3 * 12
    assert here.tokens.key == there.tokens.key
    assert (here.tokens.path / "index.json").read_bytes() == (there.tokens.path / "index.json").read_bytes()


@pytest.mark.slow  # twenty seconds of patience
def test_a_cluster_that_is_not_there(tmp_path: Path, files: LocalFiles) -> None:
    corpus = Corpus(tmp_path, files)
    with pytest.raises(StepFailed, match=r"tcp://127.0.0.1:9"):
        corpus.run("steps.tokens.runtime.dask=tcp://127.0.0.1:9")


def test_the_same_content_is_tokenized_once(tmp_path: Path, files: LocalFiles) -> None:
    same = texts(range(1))["cn/000/00000.txt"]
    files.write({"cn/same.txt": same, "en/same.txt": same, "en/same.jsonl": '{"text": "x"}\n'})
    corpus = Corpus(tmp_path, files)
    corpus.run()
    assert corpus.tokens.statistics["files_tokenized"] == 13
    assert corpus.tokens.statistics["files"] == 15
    files.write({"en/more.txt": same})
    corpus.run()
    assert corpus.tokens.statistics["files_tokenized"] == 0


def test_the_manifest_names_the_objects_that_are_in_use(tmp_path: Path, files: LocalFiles) -> None:
    corpus = Corpus(tmp_path, files)
    corpus.run()
    there = {p.name for p in (corpus.store.root / "objects").glob("*/*")}
    assert len(there) == 12
    assert corpus.tokens.objects == there
    files.delete("cn/000/00000.txt")
    corpus.run()
    assert len(corpus.tokens.objects or ()) == 11
    assert corpus.tokens.objects < there  # what no manifest names any more is what may go


def test_what_an_index_forgot_is_read_from_the_objects(tmp_path: Path, files: LocalFiles) -> None:
    corpus = Corpus(tmp_path, files)
    corpus.run()
    before = (corpus.tokens.path / "index.json").read_bytes()
    shutil.rmtree(corpus.tokens.home)
    corpus.run()
    assert corpus.tokens.statistics["files_tokenized"] == 0
    assert (corpus.tokens.path / "index.json").read_bytes() == before


def test_a_stopped_run_keeps_what_it_has(tmp_path: Path, files: LocalFiles) -> None:
    corpus = Corpus(tmp_path, files)
    stop = threading.Event()

    class StopsAtTheFirst(Recorder):
        def on_progress(self, step: object, progress: object) -> None:
            stop.set()

    with pytest.raises(Stopped):
        run_plan(corpus.plan("steps.tokens.runtime.workers=1"), corpus.store, StopsAtTheFirst(), stop)
    done = len(list((tmp_path / "store" / "objects").rglob("object.json")))
    assert 1 <= done < 12
    corpus.run()
    assert corpus.tokens.statistics["files_tokenized"] == 12 - done


def test_broken_records(tmp_path: Path, files: LocalFiles) -> None:
    files.write({"en/broken.jsonl": '{"text": "good"}\n{"text": \n'})
    corpus = Corpus(tmp_path, files)
    with pytest.raises(StepFailed, match=r"broken.jsonl:2: "):
        corpus.run()
    corpus.run("steps.tokens.params.on_error=skip")
    assert corpus.tokens.statistics["skipped_records"] == 1
    assert open_store(corpus.store.root).refs.names() == ["corpus"]

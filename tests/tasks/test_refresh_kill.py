"""`kill -9` while a new version is being made: the older one stays, and the next run makes the whole new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tasks.corpus import Corpus, LocalFiles, documents, inodes, texts

pytestmark = pytest.mark.faults

SMALL_SHARDS = "steps.shards.params.shard_tokens=60"  # many, so that writing them takes a while


@pytest.mark.parametrize("step", ["tokens", pytest.param("shards", marks=pytest.mark.slow)])
def test_a_killed_refresh(tmp_path: Path, step: str) -> None:
    files = LocalFiles(tmp_path / "raw")
    files.write(texts(range(20)))
    corpus = Corpus(tmp_path, files)
    first = corpus.run(SMALL_SHARDS)
    before = documents(first)

    files.write(texts(range(20, 120)))
    key = corpus.plan(SMALL_SHARDS).step(step).key[:12]
    words = ["run", str(corpus.pipeline), "--no-server", "--root", str(corpus.store.root), "--set", SMALL_SHARDS]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    kind = {"tokens": "data.tokenize", "shards": "data.shard"}[step]
    attempts = corpus.store.root / "artifacts" / f"{kind}-{key}" / "attempts"
    known = {path.parent for path in corpus.store.root.glob("objects/*/*/object.json")}

    def at_work() -> bool:
        if step == "shards":
            return any(attempts.glob("*/train/*/*.bin"))
        return attempts.exists() and len(list(corpus.store.root.glob("objects/*/*/object.json"))) > len(known)

    try:
        while process.poll() is None and not at_work():
            time.sleep(0.005)
        assert process.poll() is None, "it was not killed in time"
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (attempts.parent / "manifest.json").exists()
    assert documents(first) == before

    second = corpus.run(SMALL_SHARDS)
    assert documents(second) == sorted(line for text in texts(range(120)).values() for line in text.splitlines())
    assert documents(first) == before
    assert set(inodes(first).values()) <= set(inodes(second).values())
    assert [p for p in corpus.store.root.rglob(".*") if ".tmp" in p.name or ".parts" in p.name] == []

"""A raw folder, local or on S3, and the pipeline that makes a dataset from it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.pipeline.engine import run_plan
from flows.pipeline.plan import Plan, make_plan
from flows.pipeline.schema import load_pipeline
from tasks.store import Artifact, Store, open_store
from tests.data.corpora import read_bin
from tests.flows.pipeline.conftest import Recorder
from tests.s3_server import S3Server

TOKENIZER = Path(__file__).with_name("tokenizer.json")

PIPELINE = """\
pipeline: refresh
steps:
  raw:
    uses: source.files
    params: {root: "ROOT"}
  tokens:
    uses: data.tokenize
    needs: {raw: raw}
    params: {tokenizer: "TOKENIZER", bos: false, eos: false}
  shards:
    uses: data.shard
    needs: {tokens: tokens}
    params: {valid_fraction: 0.2, shard_tokens: 1000}
publish: {corpus: shards}
"""


class LocalFiles:
    """Raw files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.root = str(folder)

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = Path(self.root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def delete(self, name: str) -> None:
        Path(self.root, name).unlink()


class S3Files:
    """Raw files below a prefix of a bucket."""

    def __init__(self, server: S3Server) -> None:
        self.client, self.bucket = server.client(), server.new_bucket()
        self.root = f"s3://{self.bucket}/raw"

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            self.client.put_object(Bucket=self.bucket, Key=f"raw/{name}", Body=text.encode())

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=f"raw/{name}")


class Corpus:
    """Plans and runs the pipeline in one store."""

    def __init__(self, folder: Path, files: LocalFiles | S3Files, store: Path | None = None) -> None:
        self.files = files
        self.pipeline = folder / "refresh.yaml"
        self.pipeline.parent.mkdir(parents=True, exist_ok=True)
        self.pipeline.write_text(PIPELINE.replace("ROOT", files.root).replace("TOKENIZER", str(TOKENIZER)))
        self.store: Store = open_store(store or folder / "store")

    def plan(self, *overrides: str) -> Plan:
        return make_plan(load_pipeline(self.pipeline, overrides), self.store)

    def run(self, *overrides: str) -> Artifact:
        """Run everything; the dataset."""
        plan = self.plan(*overrides)
        self.recorder = Recorder()
        run_plan(plan, self.store, self.recorder, threading.Event())
        self.tokens = self.store.artifact("tokens", plan.step("tokens").key)
        return self.store.artifact("shards", plan.step("shards").key)


def texts(numbers: range) -> dict[str, str]:
    """A raw file for each number, in two types; no two have a line in common."""
    return {
        f"{'en' if n % 3 else 'cn'}/{n // 100:03d}/{n:05d}.txt": "".join(f"file {n} line {i}\n" for i in range(4))
        for n in numbers
    }


def documents(dataset: Artifact) -> list[str]:
    """Every document of a dataset as text, sorted."""
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(dataset.path / "tokenizer")
    bins = [path for split in ("train", "valid") for path in (dataset.path / split).rglob("*.bin")]
    return sorted(tokenizer.decode(ids) for path in bins for ids in read_bin(path))


def inodes(dataset: Artifact) -> dict[str, int]:
    """Path of each .bin below the dataset to its inode."""
    return {p.relative_to(dataset.path).as_posix(): p.stat().st_ino for p in dataset.path.rglob("*.bin")}


def manifest(dataset: Artifact) -> dict[str, Any]:
    """The dataset's own manifest."""
    import json

    return json.loads((dataset.path / "statistics.json").read_text())

"""A dataset made from an earlier one: the same documents as from scratch, and only what changed is written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evo_core.data.dataset import shard_plan
from evo_core.data.dataset.build import PreviousVersion, ShardSource, write_shards
from evo_core.data.shards.origins import Origins
from tests.data.corpora import numbered, read_bin, write_bin

Documents = list[list[int]]


class Bench:
    """Raw files as a dictionary, and datasets made from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Documents] = {}
        self.made = 0

    def fill(self, count: int, *, each: int = 6, folder: str = "en") -> None:
        """Add `count` files of `each` documents; no token is twice in the corpus."""
        first = 1 + 1000 * len(self.files) * each
        documents = numbered(count * each, first=first, seed=len(self.files))
        for number in range(count):
            name = f"{folder}/raw_{len(self.files):04d}.txt"
            self.files[name] = documents[number * each : (number + 1) * each]

    def sources(self) -> list[ShardSource]:
        sources = []
        for name, documents in self.files.items():
            object_ = f"{hash((name, str(documents))):x}"
            path = self.folder / "objects" / object_ / "tokens.bin"
            if not path.exists():
                write_bin(path, documents)
            sources.append(ShardSource(name.partition("/")[0], path, name, object_))
        return sources

    def make(self, previous: Path | None = None, **options: Any) -> Path:
        self.made += 1
        out = self.folder / f"version_{self.made}"
        settings = {"valid_fraction": 0.2, "shard_tokens": 150} | options
        record = PreviousVersion.load(previous) if previous else None
        self.statistics = write_shards(self.sources(), out, previous=record, **settings)
        return out

    def make_from_scratch(self, **options: Any) -> Path:
        return self.make(None, **options)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.fill(40)
    bench.fill(20, folder="cn")
    return bench


def in_order(out: Path, split: str, name: str) -> Documents:
    """Documents of one type and side in the order that does not depend on the grouping."""
    shards = {p.relative_to(out).as_posix(): read_bin(p) for p in (out / split / name).glob("*.bin")}
    if not shards:
        return []
    runs = Origins.load(out).in_order({path: len(documents) for path, documents in shards.items()})
    return [d for run in runs for d in shards[run.shard][run.start : run.stop]]


def content(out: Path) -> dict[tuple[str, str], Documents]:
    return {(split, name): in_order(out, split, name) for split in ("train", "valid") for name in ("cn", "en")}


def inodes(out: Path) -> dict[str, int]:
    return {p.relative_to(out).as_posix(): p.stat().st_ino for p in out.rglob("*.bin*")}


def same_statistics(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a["types"] == b["types"] and a.get("dropped") == b.get("dropped")


def check_against_scratch(bench: Bench, refreshed: Path, **options: Any) -> None:
    """The refreshed dataset has the documents, their order and the counts of one made from nothing."""
    statistics = bench.statistics
    scratch = bench.make_from_scratch(**options)
    assert content(refreshed) == content(scratch)
    assert same_statistics(statistics, bench.statistics)
    for shard in statistics["shards"]:
        documents = read_bin(refreshed / shard["path"])
        assert (shard["documents"], shard["tokens"]) == (len(documents), sum(map(len, documents)))
        assert shard["origins"] == Origins.load(refreshed).of_shard(shard["path"])
    shutil.rmtree(scratch)


def test_nothing_changed_links_everything(bench: Bench) -> None:
    first = bench.make()
    second = bench.make(first)
    assert inodes(second) == inodes(first)
    check_against_scratch(bench, second)


def test_new_files_become_new_shards(bench: Bench) -> None:
    first = bench.make()
    bench.fill(1)
    second = bench.make(first)
    before, after = inodes(first), inodes(second)
    assert {path: after[path] for path in before} == before, "every shard was kept"
    assert 2 <= len(set(after) - set(before)) <= 4, "a .bin and a meta on each side that got documents"
    check_against_scratch(bench, second)


def test_a_deleted_file_is_gone_and_only_its_shards_are_written(bench: Bench) -> None:
    first = bench.make()
    gone = bench.files.pop("en/raw_0013.txt")
    second = bench.make(first)
    everything = [d for documents in content(second).values() for d in documents]
    assert not any(d in everything for d in gone)
    touched = {s for s in Origins.load(first).shards if "en/raw_0013.txt" in Origins.load(first).of_shard(s)}
    kept = {p for p, inode in inodes(first).items() if p.endswith(".bin") and inode in inodes(second).values()}
    assert set(Origins.load(first).shards) - touched == kept
    assert touched
    check_against_scratch(bench, second)
    older = [d for documents in content(first).values() for d in documents]
    assert all(d in older for d in gone), "the older version still has it"


def test_a_changed_file_is_replaced(bench: Bench) -> None:
    first = bench.make()
    before = bench.files["cn/raw_0045.txt"]
    bench.files["cn/raw_0045.txt"] = [[7, 7, 7], *before[2:]]
    second = bench.make(first)
    everything = [d for documents in content(second).values() for d in documents]
    assert [7, 7, 7] in everything
    assert before[0] not in everything
    assert all(a == b for path, a in inodes(first).items() if "/en/" in path and (b := inodes(second)[path]))
    check_against_scratch(bench, second)


def test_many_refreshes_merge_their_small_shards(bench: Bench) -> None:
    version = bench.make(shard_tokens=1000)
    counts, rewritten = [], []
    for _ in range(30):
        bench.fill(1)
        before = inodes(version)
        version = bench.make(version, shard_tokens=1000)
        small = [s for s in bench.statistics["shards"] if s["tokens"] < 500]
        for split in ("train", "valid"):
            counts.append(sum(1 for s in small if s["split"] == split and s["type"] == "en"))
        rewritten.append(len(set(before.values()) - set(inodes(version).values())))
    assert max(counts) <= shard_plan.MAX_SMALL_SHARDS + 1
    assert max(rewritten) > 0, "small shards were merged"
    assert sum(1 for n in rewritten if n) <= 10, "not at every refresh"
    check_against_scratch(bench, version, shard_tokens=1000)


def test_a_large_file_goes_over_several_shards_and_back(bench: Bench) -> None:
    bench.files["en/large.txt"] = numbered(300, first=10**6)
    first = bench.make()
    assert sum("en/large.txt" in s["origins"] for s in bench.statistics["shards"]) > 5
    check_against_scratch(bench, first)
    del bench.files["en/raw_0000.txt"]
    bench.fill(3)
    second = bench.make(first)
    check_against_scratch(bench, second)
    bench.files["en/large.txt"] = bench.files["en/large.txt"][:100]
    third = bench.make(second)
    check_against_scratch(bench, third)
    del bench.files["en/large.txt"]
    check_against_scratch(bench, bench.make(third))


@pytest.mark.parametrize("seed", range(4))
def test_any_history_gives_the_same_documents(bench: Bench, seed: int) -> None:
    random = np.random.RandomState(seed)
    options: dict[str, Any] = {"dedup": ["none", "exact", "near"][seed % 3]}
    version = bench.make(**options)
    for step in range(5):
        names = sorted(bench.files)
        for name in random.choice(names, size=3, replace=False):
            del bench.files[str(name)]
        bench.fill(int(random.randint(1, 4)), folder=str(random.choice(["cn", "en"])))
        changed = str(random.choice(sorted(bench.files)))
        # A document of another file: a copy, which may come before or after the first one.
        other = bench.files[str(random.choice(sorted(bench.files)))]
        bench.files[changed] = [*bench.files[changed][1:], other[0], [step + 1, 5, 5]]
        version = bench.make(version, **options)
        check_against_scratch(bench, version, **options)


def test_a_copy_that_comes_first_takes_the_place_of_the_other(bench: Bench) -> None:
    first = bench.make(dedup="exact")
    document = bench.files["en/raw_0030.txt"][0]
    bench.files["cn/a.txt"] = [document]
    second = bench.make(first, dedup="exact")
    assert bench.statistics["types"]["en"]["removed"] == {"exact": 1, "near": 0}
    assert document in [d for (_, name), part in content(second).items() if name == "cn" for d in part]
    check_against_scratch(bench, second, dedup="exact")
    del bench.files["cn/a.txt"]
    third = bench.make(second, dedup="exact")
    assert document in [d for (_, name), part in content(third).items() if name == "en" for d in part]


@pytest.mark.parametrize("damage", ["missing", "broken", "other version", "cut shard"])
def test_a_record_that_cannot_be_used_costs_only_time(bench: Bench, damage: str) -> None:
    first = bench.make()
    record = first / "refresh" / "record.json"
    if damage == "missing":
        record.unlink()
    elif damage == "broken":
        record.write_bytes(record.read_bytes()[:-20])
    elif damage == "other version":
        record.write_text(record.read_text().replace('"version":1', '"version":0'))
    else:
        next((first / "train" / "en").glob("*.bin")).write_bytes(b"{")
    bench.fill(1)
    second = bench.make(first)
    assert not set(inodes(first).values()) & set(inodes(second).values())
    check_against_scratch(bench, second)

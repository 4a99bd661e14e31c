"""`data.shard` in a pipeline: routes, repeated documents, keys, and what is refused when planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evo_core.errors import ConfigError
from flows.pipeline.failures import StepFailed
from tests.tasks.corpus import Corpus, LocalFiles, documents, manifest, texts

EN = "The quick brown fox jumps over the lazy dog, and it barked at the moon for the whole of night {}."
CN = "感恩生活中的每一个细节，才能真正体会到幸福的滋味，这是第{}个。"
DE = "Der Hund lief über die Straße, weil er auf der anderen Seite den Freund Nummer {} gesehen hatte."


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    files = LocalFiles(tmp_path / "raw")
    files.write(texts(range(10)))
    return Corpus(tmp_path, files)


def mixed(numbers: range) -> str:
    """JSON lines in three languages, with their type in a field."""
    rows = [{"text": text.format(n), "lang": lang} for n in numbers for lang, text in (("en", EN), ("cn", CN))]
    rows += [{"text": DE.format(n), "lang": "de"} for n in numbers[:1]]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def key(corpus: Corpus, *overrides: str) -> str:
    return corpus.plan(*overrides).step("shards").key


def test_new_parameters_move_no_key(corpus: Corpus) -> None:
    plain = key(corpus)
    defaults = ["route=path", "others=error", "dedup=none", "near={threshold: 0.7}"]
    assert key(corpus, *(f"steps.shards.params.{default}" for default in defaults)) == plain
    assert key(corpus, "steps.tokens.params.type_key=null") == plain
    runtime = ["steps.shards.runtime.workers=3", "steps.tokens.runtime.workers=3", "steps.tokens.runtime.dask=local"]
    assert key(corpus, *runtime) == plain
    others = [
        ["steps.shards.params.dedup=exact"],
        ["steps.shards.params.dedup=near"],
        ["steps.shards.params.dedup=near", "steps.shards.params.near={threshold: 0.7}"],
        ["steps.shards.params.others=drop"],
        ["steps.shards.params.route=detect"],
        ["steps.tokens.params.type_key=lang"],
    ]
    assert len({plain, *(key(corpus, *settings) for settings in others)}) == len(others) + 1


REFUSED = {
    "field without types": (["route=field"], "steps.shards.params.route: route: field needs the types"),
    "map without paths": (["route=detect", "by_path={'*': en}"], "steps.shards.params.by_path: by_path has no effect"),
    "left out": (["types=[cn]"], "raw text of type en would be left out"),
    "threshold": (["near={threshold: 2}"], "near.threshold"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_when_planned(corpus: Corpus, case: str) -> None:
    settings, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        corpus.plan(*(f"steps.shards.params.{setting}" for setting in settings))


def test_other_types_can_be_dropped(corpus: Corpus) -> None:
    dataset = corpus.run("steps.shards.params.types=[cn]", "steps.shards.params.others=drop")
    assert list(dataset.statistics["types"]) == ["cn"]
    assert dataset.statistics["dropped"] == {"en": 4 * 6}


def test_types_from_a_field(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "raw")
    files.write({"a.jsonl": mixed(range(20)), "b.jsonl": mixed(range(20, 40))})
    corpus = Corpus(tmp_path, files)
    field = ["steps.tokens.params.type_key=lang", "steps.shards.params.route=field"]
    with pytest.raises(StepFailed, match="type de: too few documents"):
        corpus.run(*field)
    dataset = corpus.run(*field, "steps.shards.params.types=[cn, en]", "steps.shards.params.others=drop")
    assert {name: t["documents"] for name, t in dataset.statistics["types"].items()} == {"cn": 40, "en": 40}
    assert dataset.statistics["dropped"] == {"de": 2}


def test_a_refresh_detects_only_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evo_core.data.dataset.detect import Detector

    looked_at: list[str] = []
    real = Detector.types
    monkeypatch.setattr(
        Detector, "types", lambda self, reader: looked_at.append(str(reader.path)) or real(self, reader)
    )
    files = LocalFiles(tmp_path / "raw")
    files.write({"a.jsonl": mixed(range(20)), "b.jsonl": mixed(range(20, 40))})
    corpus = Corpus(tmp_path, files)
    detect = [
        "steps.shards.params.route=detect",
        "steps.shards.params.types=[cn, en]",
        "steps.shards.params.others=drop",
    ]
    first = corpus.run(*detect)
    assert {name: t["documents"] for name, t in first.statistics["types"].items()} == {"cn": 40, "en": 40}
    assert len(looked_at) == 2
    files.write({"c.jsonl": mixed(range(40, 45))})
    second = corpus.run(*detect)
    assert {name: t["documents"] for name, t in second.statistics["types"].items()} == {"cn": 45, "en": 45}
    assert second.statistics["dropped"] == {"de": 3}
    assert len(looked_at) == 3


@pytest.mark.parametrize("dedup", ["exact", "near"])
def test_repeated_documents(tmp_path: Path, dedup: str) -> None:
    files = LocalFiles(tmp_path / "raw")
    files.write(texts(range(10)) | {"en/copy.txt": texts(range(10))["en/000/00001.txt"]})
    corpus = Corpus(tmp_path, files)
    first = corpus.run(f"steps.shards.params.dedup={dedup}", "steps.shards.params.near={threshold: 0.99}")
    assert documents(first) == sorted(line for text in texts(range(10)).values() for line in text.splitlines())
    assert first.statistics["types"]["en"]["removed"] == {"exact": 4, "near": 0}
    # The file whose copies were left out goes: they come back.
    files.delete("en/000/00001.txt")
    second = corpus.run(f"steps.shards.params.dedup={dedup}", "steps.shards.params.near={threshold: 0.99}")
    assert documents(second) == documents(first)
    assert any("en/copy.txt" in shard["origins"] for shard in manifest(second)["shards"])


def test_dataset_errors_name_the_key(corpus: Corpus) -> None:
    with pytest.raises(StepFailed, match=r"steps.shards.params.valid_fraction: type cn: too few documents"):
        corpus.run("steps.shards.params.valid_fraction=0.0001")
    assert not list(corpus.store.root.glob("artifacts/data.shard-*/attempts/*/train")), "nothing half-made is left"


def test_progress_tells_tokens_a_second(corpus: Corpus) -> None:
    corpus.run()
    reports: list[Any] = [report for report in corpus.recorder.progress if report["unit"] == "tokens"]
    assert reports[-1]["done"] == reports[-1]["total"]
    assert all(report["tokens_per_second"] > 0 and "eta_seconds" in report for report in reports)

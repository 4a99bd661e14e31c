"""Where documents come from and in what order they are, whatever the grouping."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evo_core.data.shards.origins import DocumentRun, Origins
from evo_core.errors import DataError


def test_as_written(tmp_path: Path) -> None:
    origins = Origins(["b.txt", "a.txt", "b.txt"])
    origins.add("train/en/train_000.bin", 0, "a.txt", 0)
    origins.add("train/en/train_000.bin", 3, "b.txt", 7)
    origins.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["origins.json"]
    assert json.loads((tmp_path / "origins.json").read_text()) == {
        "origins": ["a.txt", "b.txt"],
        "shards": {"train/en/train_000.bin": [[0, 0, 0], [3, 1, 7]]},
    }
    loaded = Origins.load(tmp_path)
    assert [loaded.of("train/en/train_000.bin", n) for n in range(5)] == ["a.txt"] * 3 + ["b.txt"] * 2
    assert loaded.of_shard("train/en/train_000.bin") == ["a.txt", "b.txt"]
    assert loaded.shards == ("train/en/train_000.bin",)


def test_the_order_is_that_of_names_and_positions(tmp_path: Path) -> None:
    origins = Origins(["a", "b", "c"])
    origins.add("x", 0, "b", 0)
    origins.add("x", 2, "c", 5)
    origins.add("y", 0, "a", 0)
    origins.add("y", 1, "b", 2)
    origins.add("y", 4, "c", 0)
    origins.save(tmp_path)
    wanted = [
        DocumentRun("y", 0, 1),
        DocumentRun("x", 0, 2),
        DocumentRun("y", 1, 4),
        DocumentRun("y", 4, 9),
        DocumentRun("x", 2, 6),
    ]
    assert Origins.load(tmp_path).in_order({"x": 6, "y": 9}) == wanted
    assert Origins.load(tmp_path).in_order({"x": 6}) == [DocumentRun("x", 0, 2), DocumentRun("x", 2, 6)]
    with pytest.raises(DataError, match="not among the shards"):
        origins.in_order({"z": 1})
    with pytest.raises(DataError, match=r"origins\.json: y has 3 documents, and here are more of them"):
        Origins.load(tmp_path).in_order({"y": 3})


def test_datasets_of_before_there_were_positions(tmp_path: Path) -> None:
    (tmp_path / "origins.json").write_text(
        json.dumps({"origins": ["b", "a"], "shards": {"x": [[0, 1], [2, 0]], "y": [[0, 0]]}})
    )
    origins = Origins.load(tmp_path)
    assert origins.of("x", 1) == "a"
    assert origins.in_order({"y": 3, "x": 4}) == [
        DocumentRun("x", 0, 2),
        DocumentRun("x", 2, 4),
        DocumentRun("y", 0, 3),
    ]

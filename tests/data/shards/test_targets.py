"""Data without anything to train on are told of, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evo_core.data.commands import app
from evo_core.data.loader.train_data import TrainData
from evo_core.data.shards.targets import has_targets, types_without_targets
from tests.data.corpora import job, write_bin

CONTEXT = [[-5, -6, -7, -8, -9, -10, -11, -12]] * 20
ANSWERED = [[-5, -6, -7, -8, -9, -10, -11, 12]] * 20


@pytest.mark.parametrize(
    ("documents", "found"),
    [(CONTEXT, False), (ANSWERED, True), ([[1, -2], [3]], False), ([[1, -2], [1, 0]], True), ([], False)],
)
def test_has_targets(documents: list[list[int]], found: bool, tmp_path: Path) -> None:
    assert has_targets([write_bin(tmp_path / "a.bin", documents)]) is found
    assert has_targets([tmp_path / "a.bin", write_bin(tmp_path / "b.bin", ANSWERED)])


def test_types(tmp_path: Path) -> None:
    write_bin(tmp_path / "cn/a.bin", CONTEXT)
    write_bin(tmp_path / "en/a.bin", CONTEXT)
    write_bin(tmp_path / "en/b.bin", ANSWERED)
    assert types_without_targets(tmp_path) == ["cn"]


@pytest.mark.parametrize("use_shm", [False, True])
def test_training_data_say_how_many_by_type(use_shm: bool, tmp_path: Path) -> None:
    write_bin(tmp_path / "train/cn/a.bin", CONTEXT)
    write_bin(tmp_path / "train/en/a.bin", [*ANSWERED, [1, 2]])
    options: dict[str, Any] = {"use_shm": use_shm, "shm_path": str(tmp_path / "shm"), "min_length": 3}
    data = TrainData(job(tmp_path / "train", **options), dp_rank=0, dp_size=1)
    assert data.describe() == "cn 160 (0 to train on), en 160 (20 to train on) tokens"
    data.close()
    assert TrainData(job(None), dp_rank=0, dp_size=1).trained["cn"] == 0


@pytest.mark.parametrize(
    ("documents", "options"),
    [
        ([[-1] * 8 + [2, 3]] * 20, {"use_packed_dataset": False}),  # the answers lie behind seq_len
        ([[0] * 8] * 20, {"mask_token_zero": True}),
    ],
    ids=["rows", "mask_token_zero"],
)
def test_what_the_files_alone_do_not_show(
    documents: list[list[int]], options: dict[str, bool], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_bin(tmp_path / "train/en/a.bin", documents)
    data = TrainData(job(tmp_path / "train", **options), dp_rank=0, dp_size=1)
    data.draw(0)
    data.draw(1)
    assert caplog.text.count("the first batch holds no token to train on") == 1


def verify(path: Path, status: int) -> str:
    result = CliRunner().invoke(app, ["verify", str(path)])
    assert result.exit_code == status
    return result.output


def test_verify(tmp_path: Path) -> None:
    for split, documents in (("train", CONTEXT), ("valid", ANSWERED)):
        write_bin(tmp_path / f"set/{split}/en/a.bin", documents)
    text = verify(tmp_path / "set", 2)
    assert "train/en: not a single token is trained on" in text and "1 problem" in text
    verify(tmp_path / "set/valid", 0)
    verify(write_bin(tmp_path / "context.bin", CONTEXT), 2)
    # Another file of the type has some.
    write_bin(tmp_path / "set/train/en/b.bin", ANSWERED)
    verify(tmp_path / "set", 0)
    verify(write_bin(tmp_path / "single.bin", [[1], [2]]), 0)

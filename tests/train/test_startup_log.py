"""What a run says before its first step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evo_core.model import build_model, count_parameters
from tests.data.corpora import write_bin
from tests.ranks import run_on_ranks
from tests.train.jobs import job, run

CONTEXT = [[-5, -6, -7, -8, -9]] * 200


def test_trained_tokens_by_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bin(tmp_path / "train/cn/a.bin", CONTEXT)
    write_bin(tmp_path / "train/en/a.bin", [[-5, 6, 7, -8, 9]] * 200)
    data = {"data__train_folder": str(tmp_path / "train"), "data__total_steps": 1}
    run(job(tmp_path, ckpt__enable_save_ckpt=False, **data), tmp_path / "run")
    said = capsys.readouterr().out
    assert "data: cn 1,000 (0 to train on), en 1,000 (600 to train on) tokens; a step is" in said
    assert "not a single token is trained on" not in said


@pytest.mark.parametrize("ranks", [1, 2])
def test_nothing_to_train_on_is_said_once(ranks: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "valid"):
        write_bin(tmp_path / "set" / split / "en/a.bin", CONTEXT)
    folders = {f"data__{split}_folder": str(tmp_path / "set" / split) for split in ("train", "valid")}
    cfg = job(tmp_path, ckpt__enable_save_ckpt=False, data__total_steps=2, data__valid_every=1, **folders)
    if ranks == 1:
        run(cfg, tmp_path / "run")
    else:
        run_on_ranks(run, ranks, cfg, tmp_path / "run")
    said = capfd.readouterr().out
    assert len(re.findall(r"WARNING.*data\.train_folder .*: not a single token is trained on", said)) == 1
    assert len(re.findall(r"WARNING.*data\.valid_folder .*: type en gives no score", said)) == 1
    assert "first batch" not in said


@pytest.mark.parametrize(("ranks", "zero1"), [(1, -1), (2, 1), (3, 3), (4, 2)])
def test_the_tables_of_ranks_and_their_shares(ranks: int, zero1: int, tmp_path: Path) -> None:
    """Each parameter is cut by rows, as `torch.chunk` cuts them; an odd vocabulary makes shares differ."""
    cfg = job(
        tmp_path,
        ckpt__enable_save_ckpt=False,
        data__total_steps=1,
        data__global_batch_tokens=32 * 12,
        model__vocab_size=67,
        parallel={"zero1": {"size": zero1}},
    )
    run_on_ranks(run, ranks, cfg, tmp_path / "run")
    size = ranks if zero1 == -1 else zero1
    shares = [0] * size
    for parameter in build_model(cfg.model, device="meta").parameters():
        for rank, share in enumerate(parameter.chunk(size)):
            shares[rank] += share.numel()
    said = (tmp_path / "run" / "train.log").read_text()
    assert f"Number of elements on ranks: {shares}\n" in said
    assert size != 3 or len(set(shares)) > 1
    rows = [line.split() for line in said.partition("ranks:\n")[2].splitlines()[1 : ranks + 1]]
    assert [row[:4] for row in rows] == [[str(n), str(n), str(n % size), str(n)] for n in range(ranks)]


@pytest.mark.parametrize(("tensor", "weight", "zero1"), [(1, 2, 1), (2, 1, 2)])
def test_shares_where_one_part_of_the_model_is_shared_by_more_ranks_than_another(
    tensor: int, weight: int, zero1: int, tmp_path: Path
) -> None:
    """With isp the state of the blocks' layers is cut over other ranks than that of the rest."""
    parallel = {"tensor": {"size": tensor, "mode": "isp"}, "weight": {"size": weight}, "zero1": {"size": zero1}}
    cfg = job(tmp_path, ckpt__enable_save_ckpt=False, data__total_steps=1, parallel=parallel)
    run_on_ranks(run, 2, cfg, tmp_path / "run")
    said = (tmp_path / "run" / "train.log").read_text()
    sizes = f"pipeline parallel size: 1, tensor parallel size: {tensor}, weight parallel size: {weight}\n"
    assert f"data parallel size: {2 // tensor}, {sizes}" in said
    whole = build_model(cfg.model, device="meta")
    kept = [p for name, p in whole.named_parameters() if "norm" in name]  # on both ranks, all else on one of them
    updated = count_parameters(whole) + (sum(p.numel() for p in kept) if tensor > 1 else 0)
    (shares,) = re.findall(r"Number of elements on ranks: \[(\d+), (\d+)\]", said)
    assert sum(map(int, shares)) == updated
    names, *rows = [line.split() for line in said.partition("ranks:\n")[2].splitlines()[:3]]
    assert [row[names.index("wp")] for row in rows] == [str(rank % weight) for rank in range(2)]

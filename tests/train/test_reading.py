"""What one rank cannot read ends every rank with its error, and ranks that read different data do not begin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from evo_core.config import TrainConfig, load_config
from evo_core.errors import DataError
from evo_core.parallel.collectives import RankFailed
from tests.ranks import run_on_ranks
from tests.train.jobs import before_each_step, curve, job, run, write_job, write_tokens

STAGES = {"pipeline": 3, "zero1": {"size": -1}}
EXPERTS = {"model_type": "INTERNLM_MoE", "model__num_experts": 4, "model__num_kv_attention_heads": 4}
GROWING = {"data__micro_num": 4, "data__global_batch_tokens": None, "data__rampup_batch_size": "1 1 3"}


def said(cfg: TrainConfig, folder: Path, failing: int, step: int, error: Exception) -> tuple[type, str]:
    """How a run ends on this rank where reading fails on one rank before a step."""

    def fail(now: int) -> None:
        if now == step and dist.get_rank() == failing:
            raise error

    before_each_step(fail)
    with pytest.raises((DataError, RankFailed)) as caught:
        run(cfg, folder)
    return caught.type, str(caught.value)


@pytest.mark.parametrize(
    ("ranks", "failing", "parallel", "settings"),
    [
        (3, 1, STAGES, {}),
        (3, 0, STAGES, {"data__skip_batches": "5"}),
        (
            2,
            1,
            {"zero1": {"size": -1}},
            GROWING,
        ),
        pytest.param(2, 0, {"expert": 2}, EXPERTS | GROWING, marks=pytest.mark.slow),
    ],
    ids=["a middle stage", "a step that is skipped", "data ranks", "experts"],
)
def test_an_error_of_one_rank_is_that_of_all(
    tmp_path: Path, ranks: int, failing: int, parallel: dict[str, Any], settings: dict[str, Any]
) -> None:
    cfg = job(tmp_path, parallel=parallel, model__num_layers=3, **settings)
    error = DataError("a damaged shard", file="train_000.bin", line=7)
    results = run_on_ranks(said, ranks, cfg, tmp_path / "run", failing, 5, error)
    assert results == [(DataError, "train_000.bin:7: a damaged shard")] * ranks
    assert [record["step"] for record in curve(tmp_path / "run")] == [0, 1, 2, 3, 4]
    assert (tmp_path / "ckpt" / "3" / "manifest.json").is_file()


def test_a_mistake_of_the_code_ends_all_of_them_too(tmp_path: Path) -> None:
    cfg = job(tmp_path, parallel={"pipeline": 2}, ckpt__enable_save_ckpt=False)
    results = run_on_ranks(said, 2, cfg, tmp_path / "run", 1, 0, ZeroDivisionError("in the first step"))
    assert results == [(RankFailed, "rank 1: ZeroDivisionError: in the first step")] * 2


def test_stages_that_read_different_data_do_not_begin(tmp_path: Path) -> None:
    """Files may lie elsewhere on every machine, but must be the same ones."""
    file = write_job(tmp_path, parallel={"pipeline": 3}, model__num_layers=3, data__train_folder="${oc.env:HERE}")
    write_tokens(tmp_path / "other", seed=5)

    def body() -> str:
        os.environ["HERE"] = str(tmp_path / ("other" if dist.get_rank() == 1 else "data"))
        with pytest.raises(DataError) as caught:
            run(load_config(file), tmp_path / "run")
        return str(caught.value)

    told = "holds 2 data sets: one on ranks 0, 2, other ones on rank 1 (give every machine the same files)"
    for rank, said in enumerate(run_on_ranks(body, 3)):
        assert said == f"{tmp_path / ('other' if rank == 1 else 'data')}: {told}"

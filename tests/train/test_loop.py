"""The loop as a whole: layouts agree, checkpoints resume, what is skipped is skipped, what stops stops."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from evo_core.checkpoint import load_model, newest_complete
from evo_core.config.identity import identity_of
from evo_core.errors import CheckpointError
from evo_core.train.optimizer import make_schedules
from tests.ranks import run_on_ranks
from tests.train.jobs import before_each_step, curve, job, losses, run, write_tokens


@pytest.mark.parity
@pytest.mark.parametrize(("ranks", "zero1"), [(1, -1), (2, 1), (2, 2), (4, 1), (4, 2), (4, -1)], ids=lambda v: str(v))
def test_every_layout_gives_the_curve_of_one_process(tmp_path: Path, ranks: int, zero1: int) -> None:
    cfg = job(tmp_path, ckpt__enable_save_ckpt=False, data__total_steps=6)
    run(cfg, tmp_path / "one")
    many = job(tmp_path, ckpt__enable_save_ckpt=False, data__total_steps=6, parallel={"zero1": {"size": zero1}})
    run_on_ranks(run, ranks, many, tmp_path / "many")
    for one, got in zip(curve(tmp_path / "one"), curve(tmp_path / "many"), strict=True):
        for name in ("loss", "grad_norm", "perplexity", "acc", "lr"):
            assert got[name] == pytest.approx(one[name], rel=1e-11), name
        for name in ("num_consumed_tokens", "tokens/en"):
            assert got.get(name) == one.get(name)


def test_the_same_run_gives_the_same_bits(tmp_path: Path) -> None:
    cfg = job(tmp_path, ckpt__enable_save_ckpt=False, model__dtype="torch.float32")
    for name in ("a", "b"):
        run_on_ranks(run, 2, cfg, tmp_path / name)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


@pytest.mark.slow
def test_compiled_blocks_give_the_same_curve(tmp_path: Path) -> None:
    """The setting is not part of what a job computes."""
    plain, compiled = (job(tmp_path, ckpt__enable_save_ckpt=False, model__compile=value) for value in (False, True))
    assert identity_of(plain, 1) == identity_of(compiled, 1)
    run(plain, tmp_path / "plain")
    run(compiled, tmp_path / "compiled")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-11)


def test_it_learns(tmp_path: Path) -> None:
    result = run(job(tmp_path, data__total_steps=30, ckpt__enable_save_ckpt=False), tmp_path / "run")
    assert result.loss < losses(tmp_path / "run")[0] - 0.5


def test_the_final_step_is_saved_and_the_model_can_be_loaded(tmp_path: Path) -> None:
    result = run(job(tmp_path, data__total_steps=7), tmp_path / "run")
    assert result.step == 7
    assert result.checkpoint == tmp_path / "ckpt" / "7" == newest_complete(tmp_path / "ckpt")
    assert sorted(p.name for p in (tmp_path / "ckpt").iterdir()) == ["3", "6", "7"]
    model, tokenizer = load_model(f"local:{tmp_path / 'ckpt'}")
    assert tokenizer is None
    assert not model.training
    assert next(model.parameters()).dtype == torch.float64
    assert next(load_model(tmp_path / "ckpt", dtype=torch.float32)[0].parameters()).dtype == torch.float32


def test_the_tokenizer_and_its_chat_template_stay_with_the_weights(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    shutil.copy(Path(__file__).parents[1] / "tasks" / "tokenizer.json", tmp_path / "own")
    (tmp_path / "own" / "chat_template.jinja").write_text("{{ messages }}")
    cfg = job(tmp_path, data__total_steps=1, data__tokenizer_path=str(tmp_path / "own"), model__vocab_size=300)
    result = run(cfg, tmp_path / "run")
    assert result.checkpoint is not None
    _, tokenizer = load_model(result.checkpoint)
    assert tokenizer is not None
    assert [file.name for file in tokenizer.companions] == ["chat_template.jinja"]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    cfg = job(tmp_path)
    first = run(cfg, tmp_path / "run")
    before = curve(tmp_path / "run")
    assert run(cfg, tmp_path / "run") == first
    assert curve(tmp_path / "run") == before


def test_resuming_gives_the_bits_of_the_uninterrupted_run(tmp_path: Path) -> None:
    """In float32 on two ranks: from the checkpoint of step 3, with a curve that had come to step 4."""
    whole = job(tmp_path, model__dtype="torch.float32", ckpt__save_ckpt_folder=str(tmp_path / "whole"))
    run_on_ranks(run, 2, whole, tmp_path / "a")
    begun = job(tmp_path, model__dtype="torch.float32")

    def interrupted() -> None:
        def interrupt(step: int) -> None:
            if step == 5:
                raise KeyboardInterrupt

        before_each_step(interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(begun, tmp_path / "b")

    run_on_ranks(interrupted, 2)
    assert len(curve(tmp_path / "b")) == 5
    run_on_ranks(run, 2, begun, tmp_path / "b")
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    assert [r["step"] for r in curve(tmp_path / "b")] == list(range(8))


@pytest.mark.parametrize("dtype", ["torch.float64", "torch.bfloat16"])
def test_resuming_at_other_sizes(tmp_path: Path, dtype: str) -> None:
    """Three steps on 2 ranks, three on 4 with half ZeRO groups, the rest on one."""
    whole = job(tmp_path, model__dtype=dtype, ckpt__save_ckpt_folder=str(tmp_path / "whole"))
    run(whole, tmp_path / "a")
    schedule = {"total_steps": 8, "warmup_ratio": 0.25, "eta_min": 1e-3}
    for steps, ranks, zero1 in ((3, 2, -1), (6, 4, 2), (8, 1, -1)):
        part = job(
            tmp_path,
            model__dtype=dtype,
            data__total_steps=steps,
            lr_scheduler=schedule,
            parallel={"zero1": {"size": zero1}},
        )
        run_on_ranks(run, ranks, part, tmp_path / "b")
    exact = dtype == "torch.float64"
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-11 if exact else 2e-2)
    if exact:
        return
    norms = [[r["loss_scale"] for r in curve(tmp_path / name)] for name in ("a", "b")]
    assert norms[0] == norms[1] == [65536.0] * 8


def test_the_run_folder_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evo_core.train import train

    monkeypatch.chdir(tmp_path)
    schedule = {"total_steps": 8}
    train(job(tmp_path, data__total_steps=3, lr_scheduler=schedule))
    train(job(tmp_path, data__total_steps=8, lr_scheduler=schedule))
    (folder,) = (tmp_path / "RUN" / "test").iterdir()
    assert [r["step"] for r in curve(folder)] == list(range(8))


def test_skip_batches_draws_and_does_not_train(tmp_path: Path) -> None:
    cfg = job(tmp_path, data__skip_batches="1-2,4", data__total_steps=6)
    result = run(cfg, tmp_path / "run")
    records = curve(tmp_path / "run")
    assert result.step == 6
    assert [r["loss"] is None for r in records] == [False, True, True, False, True, False]
    assert [r["num_consumed_tokens"] for r in records] == [128, 256, 384, 512, 640, 768]
    schedule = [make_schedules(cfg)[0](updates) for updates in (1, 2, 3)]
    assert [r["lr"] for r in records if r["loss"] is not None] == schedule  # three updates in all


def test_rampup_grows_the_batch(tmp_path: Path) -> None:
    cfg = job(
        tmp_path,
        data__global_batch_tokens=None,
        data__micro_num=4,
        data__rampup_batch_size="2 1 2",
        ckpt__enable_save_ckpt=False,
    )
    run(cfg, tmp_path / "run")
    records = curve(tmp_path / "run")
    assert [r["micro_num"] for r in records] == [2, 2, 3, 3, 4, 4, 4, 4]
    assert records[-1]["num_consumed_tokens"] == 32 * sum(r["micro_num"] for r in records)


GROWING = {"data__global_batch_tokens": None, "data__micro_num": 4, "data__rampup_batch_size": "2 1 2"}


@pytest.mark.parametrize(
    ("rampup", "hint"),
    [(None, 'write data.rampup_batch_size: "2 1 2"'), ("1 1 2", 'write data.rampup_batch_size: "2 1 2"')],
)
def test_a_batch_that_grew_otherwise_is_refused_on_resume(tmp_path: Path, rampup: str | None, hint: str) -> None:
    """The same step would be another place in the data."""
    run(job(tmp_path, **GROWING, data__total_steps=3, lr_scheduler={"total_steps": 8}), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"with 7 packs in its 3 steps") as refused:
        run(job(tmp_path, **GROWING | {"data__rampup_batch_size": rampup}), tmp_path / "run")
    assert hint in str(refused.value)
    assert run(job(tmp_path, **GROWING), tmp_path / "run").step == 8


def test_ranks_that_grow_more_together_are_refused_on_resume(tmp_path: Path) -> None:
    run(job(tmp_path, **GROWING, data__total_steps=3, lr_scheduler={"total_steps": 8}), tmp_path / "run")
    more = GROWING | {"data__micro_num": 2}
    with pytest.raises(RuntimeError, match=r"with 7 packs in its 3 steps, which have 8 here.*whose number divides 1"):
        run_on_ranks(run, 2, job(tmp_path, **more | {"data__rampup_batch_size": "1 1 2"}), tmp_path / "run")


def test_evaluation_while_training(tmp_path: Path) -> None:
    cfg = job(tmp_path, data__valid_every=4, ckpt__enable_save_ckpt=False)
    run(cfg, tmp_path / "one")
    run_on_ranks(run, 2, cfg, tmp_path / "two")
    for name in ("one", "two"):
        assert [("val/en_loss" in r) for r in curve(tmp_path / name)] == [False] * 3 + [True] + [False] * 3 + [True]
    one, two = curve(tmp_path / "one")[-1], curve(tmp_path / "two")[-1]
    for kind in ("cn", "code", "en"):
        for what in ("loss", "acc", "plex"):
            assert two[f"val/{kind}_{what}"] == pytest.approx(one[f"val/{kind}_{what}"], rel=1e-11)


def test_other_data_is_refused_on_resume(tmp_path: Path) -> None:
    run(job(tmp_path, data__total_steps=3, lr_scheduler={"total_steps": 8}), tmp_path / "run")
    other = write_tokens(tmp_path / "other", seed=7)
    with pytest.raises(CheckpointError, match=r"trained on other data.*load_ckpt_info"):
        run(job(tmp_path, data__train_folder=str(other)), tmp_path / "run")
    with pytest.raises(CheckpointError, match="trained on other data"):
        run(job(tmp_path, seed=7), tmp_path / "run")


def test_another_batch_is_refused_on_resume_with_the_line_to_write(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "data__global_batch_tokens": None,
        "data__micro_num": 2,
        "lr_scheduler": {"total_steps": 8},
    }
    run_on_ranks(run, 2, job(tmp_path, data__total_steps=3, **settings), tmp_path / "run")
    with pytest.raises(CheckpointError, match="global_batch_tokens: 128"):
        run(job(tmp_path, **settings), tmp_path / "run")


def test_an_impossible_layout_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ConfigError: .*do not divide over"):
        run_on_ranks(run, 3, job(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_overflow_is_logged_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = job(
        tmp_path,
        model__dtype="torch.float16",
        data__total_steps=4,
        ckpt__enable_save_ckpt=False,
        grad_scaler={"fp16": {"initial_scale": 2.0**30}, "hysteresis": 1},
    )
    run(cfg, tmp_path / "run")
    records = curve(tmp_path / "run")
    assert [r["inf_nan_skip_batches"] for r in records] == [1, 2, 3, 4]
    assert records[0]["loss_scale"] == 2.0**29
    assert records[0]["grad_norm"] is None  # JSON has no infinity
    assert records[0]["lr"] == records[3]["lr"]  # no update, no progress in the schedule
    assert capsys.readouterr().out.count("inf_nan_skip_batches=") == 4

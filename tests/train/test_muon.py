"""Runs with `optimizer: {name: muon}`: at other numbers of ranks, gone on with, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from evo_core.checkpoint import load_model
from evo_core.config import load_config
from evo_core.errors import CheckpointError, ConfigError
from evo_core.train.optimizer import make_optimizer
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, job, losses, run, write_job

MUON = {"name": "muon", "momentum": 0.9}
MOE = {"model_type": "INTERNLM_MoE", "model__num_experts": 4, "model__num_kv_attention_heads": 4, "moe": {"top_k": 2}}


def muon(folder: Path, **changes: Any) -> Any:
    return job(folder, **{"optimizer": MUON, "adam": {"lr": 1e-2, "weight_decay": 0.1}, **changes})


def trained(folder: Path, ranks: int, name: str, **changes: Any) -> list[float]:
    """The losses of a run on so many ranks, in a folder of that name."""
    cfg = muon(folder, **changes)
    run_on_ranks(lambda: run(cfg, folder / name) and None, ranks)
    return losses(folder / name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps on one process, saved at the third, sixth and last."""
    folder = tmp_path_factory.mktemp("whole")
    trained(folder, 1, "run")
    return folder


def test_it_learns_otherwise_than_adamw(whole: Path, tmp_path: Path) -> None:
    by_adamw = trained(tmp_path, 1, "run", optimizer={"name": "adamw"}, ckpt__enable_save_ckpt=False)
    by_muon = losses(whole / "run")
    assert by_muon[0] == by_adamw[0] and by_muon[-1] < by_muon[0] - 0.3
    assert by_muon[2] != by_adamw[2]


def test_two_ranks_have_the_losses_and_weights_of_one(whole: Path, tmp_path: Path) -> None:
    assert trained(tmp_path, 2, "run") == pytest.approx(losses(whole / "run"), rel=1e-12)
    one, two = (load_model(folder / "ckpt" / "8")[0] for folder in (whole, tmp_path))
    for (name, expected), got in zip(one.named_parameters(), two.parameters(), strict=True):
        assert (got - expected).abs().max() < 1e-12, name


@pytest.mark.parametrize("model", [{}, pytest.param(MOE, marks=pytest.mark.slow)], ids=["dense", "moe"])
def test_a_run_goes_on_at_other_numbers_of_ranks(tmp_path: Path, model: dict[str, Any]) -> None:
    expected = trained(tmp_path / "whole", 1, "run", **model, ckpt__enable_save_ckpt=False)
    schedule = {"total_steps": 8, "warmup_ratio": 0.25, "eta_min": 1e-3}
    for steps, ranks, zero in ((3, 4, 4), (5, 1, 1), (8, 4, 2)):
        changes = {"data__total_steps": steps, "lr_scheduler": schedule, "parallel": {"zero1": {"size": zero}}}
        found = trained(tmp_path, ranks, "run", **model, **changes)
    assert found == pytest.approx(expected, rel=1e-11)


def test_the_same_ranks_go_on_to_the_bit(tmp_path: Path) -> None:
    settings = {"model__dtype": "torch.bfloat16", "ckpt__checkpoint_every": 8}
    expected = trained(tmp_path / "whole", 2, "run", **settings)
    schedule = {"total_steps": 8, "warmup_ratio": 0.25, "eta_min": 1e-3}
    trained(tmp_path / "parts", 2, "run", **settings, data__total_steps=4, lr_scheduler=schedule)
    assert trained(tmp_path / "parts", 2, "run", **settings, lr_scheduler=schedule) == expected
    kept = [load_model(tmp_path / name / "ckpt" / "8")[0].state_dict() for name in ("whole", "parts")]
    assert all((kept[0][name] == kept[1][name]).all() for name in kept[0])


@pytest.mark.parametrize(("here", "there"), [("muon", "adamw"), ("adamw", "muon")])
def test_another_optimizer_does_not_go_on(tmp_path: Path, here: str, there: str) -> None:
    changes = {"data__total_steps": 2, "adam": {"lr": 1e-2}}
    run_on_ranks(lambda: run(job(tmp_path, optimizer={"name": there}, **changes), tmp_path / "run") and None, 1)
    cfg = job(tmp_path, optimizer={"name": here}, **changes | {"data__total_steps": 4})

    def refused() -> str:
        with pytest.raises(CheckpointError) as caught:
            run(cfg, tmp_path / "run")
        return str(caught.value)

    (said,) = run_on_ranks(refused, 1)
    assert f"optimizer.name: {here} here, and the states of " in said and f"there are {there}'s" in said
    assert f"write {there}, or start from its weights alone" in said

    info = {"path": f"local:{tmp_path / 'ckpt' / '2'}", "content": ["model"]}
    start = {"ckpt__load_ckpt_info": info, "ckpt__auto_resume": False, "ckpt__save_ckpt_folder": str(tmp_path / "new")}
    alone = job(tmp_path, optimizer={"name": here}, **changes, **start)
    run_on_ranks(lambda: run(alone, tmp_path / "alone") and None, 1)
    assert curve(tmp_path / "alone")[0]["loss"] < curve(tmp_path / "run")[0]["loss"]


@pytest.mark.parametrize(
    ("optimizer", "key", "said"),
    [
        ({"name": "sgd"}, "optimizer.name", 'must be "adamw" or "muon"'),
        ({"momentum": 0.9}, "optimizer.momentum", "is for muon: leave it out, or write name: muon"),
        ({"name": "adamw", "ns_steps": 5}, "optimizer.ns_steps", "is for muon"),
        ({"nesterov": True}, "optimizer.nesterov", "is for muon"),
        ({"lr_ratio": 1.0}, "optimizer.lr_ratio", "is for muon"),
        ({"name": "muon", "momentum": 1}, "optimizer.momentum", "must be below 1, not 1"),
        ({"name": "muon", "momentum": -0.1}, "optimizer.momentum", "at least 0"),
        ({"name": "muon", "ns_steps": 21}, "optimizer.ns_steps", "must be at most 20, not 21"),
        ({"name": "muon", "ns_steps": 0}, "optimizer.ns_steps", "at least 1"),
        ({"name": "muon", "lr_ratio": 0}, "optimizer.lr_ratio", "greater than 0"),
        ({"name": "muon", "lr": 1e-3}, "optimizer.lr", "unknown key"),
    ],
)
def test_a_key_that_means_nothing_is_named(tmp_path: Path, optimizer: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job(tmp_path, optimizer=optimizer)
    assert str(caught.value).startswith(f"{key}: ") and said in str(caught.value)


@pytest.mark.parametrize(
    ("parallel", "said"),
    [
        ({"tensor": 2}, "parallel.tensor.size 2 cuts them (set it to 1"),
        ({"tensor": {"size": 2, "mode": "fsp"}}, "take mode: isp with parallel.weight.size 1"),
        ({"tensor": {"size": 2, "mode": "isp"}, "weight": 2}, "parallel.weight.size 2 cuts them"),
        ({"zero1": {"size": -1, "fsdp": True}}, "parallel.zero1.fsdp true cuts them (set it to false"),
    ],
)
def test_what_cuts_matrices_is_refused(tmp_path: Path, parallel: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.name: muon updates whole matrices, and ") as caught:
        muon(tmp_path, parallel=parallel)
    assert said in str(caught.value)


def test_what_is_stated_is_kept_and_adamw_has_no_new_key(tmp_path: Path) -> None:
    plain = load_config(write_job(tmp_path), [])
    assert "optimizer" not in plain.identity(1) and "optimizer" not in plain.to_plain()
    stated = load_config(write_job(tmp_path, optimizer={"name": "muon", "lr_ratio": 2}), [])
    expected = {"name": "muon", "momentum": 0.95, "nesterov": True, "ns_steps": 5, "lr_ratio": 2.0}
    assert stated.identity(1)["optimizer"] == stated.to_plain()["optimizer"] == expected
    (tmp_path / "again.yaml").write_text(stated.to_yaml())
    assert load_config(tmp_path / "again.yaml", []) == stated


def test_a_model_without_matrices_of_blocks_is_refused(tmp_path: Path) -> None:
    cfg = muon(tmp_path)

    def refused() -> str:
        with pytest.raises(ConfigError) as caught:
            make_optimizer(cfg, nn.Linear(4, 4), mesh_of())
        return str(caught.value)

    assert run_on_ranks(refused, 1)[0].startswith("optimizer.name: muon updates the matrices of a decoder's blocks")

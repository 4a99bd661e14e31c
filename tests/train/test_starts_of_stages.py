"""Runs whose layers lie on two ranks, whole or each with its weights cut in two (isp): what they start from and fall
back to is that of one process, on both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from evo_core.checkpoint import load_model
from evo_core.config import TrainConfig
from evo_core.errors import CheckpointError
from evo_core.model import build_model, count_parameters
from evo_core.train import train
from evo_core.weights import write_weights
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, job, losses, run
from tests.train.test_foreign_start import made
from tests.weights.internevo_files import (
    write_context,
    write_later_isp,
    write_model_config,
    write_scheduler,
    write_tensor_parallel,
)
from tests.weights.models import weights

TWO = {"pipeline": {"size": 2}}
ISP = {"tensor": {"size": 2, "mode": "isp"}, "weight": {"size": 2, "overlap": True}}
TIED = {"model_type": "LLAMA3", "model__tie_word_embeddings": True, "model__num_layers": 3}
LAYERS = {"model__num_layers": 3}
"""Which do not divide by the ranks."""


def at_both(folder: Path, jobs: dict[str, dict[str, Any]], on_two: dict[str, Any]) -> None:
    """Run jobs in one process, into <name>-one, and on two ranks that share the model so, into <name>-two."""

    def cfg(name: str, layout: str, parallel: dict[str, Any]) -> TrainConfig:
        changes = dict(jobs[name])
        ckpt = {**changes.pop("ckpt"), "save_ckpt_folder": str(folder / f"{name}-{layout}" / "ckpt")}
        return job(folder, ckpt=ckpt, parallel=parallel, **changes)

    def on_ranks() -> None:
        for name in jobs:
            train(cfg(name, "two", on_two), folder=folder / f"{name}-two")
        dist.barrier()

    for name in jobs:
        run(cfg(name, "one", {}), folder / f"{name}-one")
    run_on_ranks(on_ranks, 2)


def start(path: Path, content: list[str], kind: str = "evo", **allow: list[str]) -> dict[str, Any]:
    info = {"path": str(path), "content": content, "ckpt_type": kind, **({"allow": allow} if allow else {})}
    return {"auto_resume": False, "load_ckpt_info": info}


@pytest.mark.parametrize(
    "on_two", [pytest.param(TWO, id="stages"), pytest.param(ISP, id="isp", marks=pytest.mark.slow)]
)
def test_starts_are_those_of_one_process(tmp_path: Path, on_two: dict[str, Any]) -> None:
    """From every system's folder, with all that may be taken of it; one whose head is the embedding has it once."""
    theirs, state = tmp_path / "6", made(tmp_path, **LAYERS).state_dict()
    if on_two is TWO:
        write_tensor_parallel(state, theirs, 3, tensor=2, pipeline=3)
    else:
        write_later_isp(state, theirs, 3, weight=4, pipeline=3)
    write_model_config(theirs, {"num_attention_heads": 4, "num_kv_attention_heads": 2})
    write_context(theirs, batches=6, updates=5, tokens=6 * 128)
    write_scheduler(theirs, position=5, total_steps=20, warmup=4, lr=1e-2, eta_min=1e-3)
    write_weights(weights(made(tmp_path, **TIED)), tmp_path / "hf", "hf")
    trained = job(tmp_path, ckpt={"save_ckpt_folder": str(tmp_path / "trained")}, data__total_steps=3, **LAYERS)
    own = Path(run(trained, tmp_path / "before").checkpoint)

    schedule = {"lr_scheduler": {"total_steps": 20, "warmup_ratio": 0.2, "eta_min": 1e-3}}
    jobs = {
        "internevo": {"ckpt": start(theirs, ["model", "scheduler"], "internevo"), "data__total_steps": 8, **LAYERS},
        "hf": {"ckpt": start(tmp_path / "hf", ["model"], "hf_model"), "data__total_steps": 2, **TIED},
        "all": {"ckpt": start(own, ["all"]), "data__total_steps": 5, **LAYERS},
        "moments": {"ckpt": start(own, ["model", "optimizer"]), "data__total_steps": 2, **LAYERS},
        "grown": {
            "ckpt": start(own, ["model"], missing=["layers.3.*"]),
            "data__total_steps": 2,
            "model__num_layers": 4,
        },
    }
    at_both(tmp_path, {name: {**each, **schedule} for name, each in jobs.items()}, on_two)
    for name, each in jobs.items():
        one, two = (curve(tmp_path / f"{name}-{layout}") for layout in ("one", "two"))
        steps = [line["step"] for line in two]
        assert steps == [line["step"] for line in one] == [each["data__total_steps"] - 2, each["data__total_steps"] - 1]
        assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-12), name
        assert [line["lr"] for line in two] == [line["lr"] for line in one]
    said = (tmp_path / "grown-two" / "train.log").read_text()
    assert said.count("lacks, first weights were drawn: layers.3.* (tensors: 9)") == 1


def test_what_no_stage_may_lack_ends_both_with_what_to_write(tmp_path: Path) -> None:
    cfg = job(tmp_path, ckpt={"save_ckpt_folder": str(tmp_path / "ckpt")}, data__total_steps=1)
    own = Path(run(cfg, tmp_path / "before").checkpoint)

    def on_ranks() -> str:
        ckpt = {"save_ckpt_folder": str(tmp_path / "new"), **start(own, ["model"])}
        with pytest.raises(CheckpointError) as caught:
            train(job(tmp_path, ckpt=ckpt, parallel=TWO, **LAYERS), folder=tmp_path / "run")
        return str(caught.value)

    (said,) = set(run_on_ranks(on_ranks, 2))
    assert "lacks layers.2.attention.wo.bias" in said
    assert 'write allow: {missing: ["layers.2.*"]}' in said


@pytest.mark.parametrize(
    "background",
    [pytest.param(False, id="at-once"), pytest.param(True, id="background", marks=pytest.mark.slow)],
)
def test_damage_in_one_stages_file_has_both_fall_back(tmp_path: Path, *, background: bool) -> None:
    """The run's curve is the one it had."""
    ckpt = {"save_ckpt_folder": str(tmp_path / "ckpt"), "auto_resume": True, "checkpoint_every": 2}
    cfg = job(tmp_path, ckpt={**ckpt, "async_upload": background}, data__total_steps=4, parallel=TWO, **TIED)

    def on_ranks() -> tuple[list[float], list[float]]:
        train(cfg, folder=tmp_path / "run")
        if dist.get_rank() == 0:
            file = tmp_path / "ckpt" / "4" / "model" / "__1_0.distcp"
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 255
            file.write_bytes(content)
        before = losses(tmp_path / "run")
        dist.barrier()
        train(cfg, folder=tmp_path / "run")
        dist.barrier()
        return before, losses(tmp_path / "run")

    before, after = run_on_ranks(on_ranks, 2)[0]
    said = (tmp_path / "run" / "train.log").read_text()
    assert said.count("falling back to the checkpoint before it") == 1
    assert f"resuming from {tmp_path / 'ckpt' / '2'}" in said
    assert after == before
    assert len(before) == 4
    assert load_model(tmp_path / "ckpt" / "4-2")[0].state_dict().keys() == build_model(cfg.model).state_dict().keys()


def test_what_is_said_at_the_start_is_of_all_stages(tmp_path: Path) -> None:
    cfg = job(tmp_path, ckpt__enable_save_ckpt=False, data__total_steps=1, parallel=TWO, **TIED)
    run_on_ranks(run, 2, cfg, tmp_path / "run")
    said, whole = (tmp_path / "run" / "train.log").read_text(), build_model(cfg.model, device="meta")
    assert f"model LLAMA3: {count_parameters(whole):,} parameters" in said
    shares = [int(number) for number in re.findall(r"\[(\d+)\] \(pipeline rank \d\)", said)]
    tied = whole.get_parameter("tok_embeddings.weight").numel()
    assert sum(shares) == count_parameters(whole) + tied  # both ends update it

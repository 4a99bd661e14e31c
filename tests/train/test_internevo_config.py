"""InternEvo's own configuration, with only its size constants replaced, trains as its log shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from evo_core.config import TrainConfig, load_config
from evo_core.parallel.mesh import make_mesh
from evo_core.train.optimizer import make_optimizer
from evo_core.train.run import make_model
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, run

CONFIG = Path(__file__).parents[2] / "configs" / "train" / "7B_sft.py"
SIZES = {"SEQ_LEN": 64, "HIDDEN_SIZE": 32, "NUM_ATTENTION_HEAD": 4, "NUM_LAYER": 2, "VOCAB_SIZE": 256}


ISP = {
    'tensor=dict(size=1, mode="mtp")': 'tensor=dict(size=2, mode="isp")',
    "weight=dict(size=1, overlap=True, memory_pool=True)": "weight=dict(size=4, overlap=True, memory_pool=True)",
}
"""What InternEvo's own 7B_isp_sft.py has in the place of lines of 7B_sft.py."""


def small(folder: Path, *overrides: str, lines: Mapping[str, str] = MappingProxyType({})) -> TrainConfig:
    """The job of the file with its size constants, and some lines, replaced."""
    text = CONFIG.read_text()
    for name, value in SIZES.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
    for was, now in lines.items():
        assert was in text
        text = text.replace(was, now)
    (folder / "small.py").write_text(text)
    return load_config(folder / "small.py", ["data.total_steps=3", "enable_tb=false", *overrides])


def test_it_runs(tmp_path: Path) -> None:
    cfg = small(tmp_path)
    run_on_ranks(run, 2, cfg, tmp_path / "run")
    records = curve(tmp_path / "run")
    assert [r["lr"] for r in records] == [4.0000000000000003e-07, 6.000000000000001e-07, 8.000000000000001e-07]
    assert [r["loss_scale"] for r in records] == [65536.0] * 3
    assert [r["adam_beta2"] for r in records] == [0.95] * 3
    assert [r["num_consumed_tokens"] for r in records] == [2 * 64 * 4 * 2 * n for n in (1, 2, 3)]
    said = (tmp_path / "run" / "train.log").read_text()
    assert "data parallel size: 2, pipeline parallel size: 1, tensor parallel size: 1" in said
    assert "New Run" in said
    assert re.search(r"Number of elements on ranks: \[\d+, \d+\]", said)
    assert said.count("WARNING") == 2  # auto_resume with load_ckpt_info, and a schedule of 50000 steps
    assert "lr_scheduler.total_steps: 50000 is more than data.total_steps 3: at the run's end the rate is 8e-07" in said
    assert "nothing is saved (ckpt.enable_save_ckpt): from scratch; load_ckpt_info" in said
    (without,) = re.findall(r"set, but without effect here: (.*)", said)
    assert "parallel.weight.memory_pool" in without
    assert "overlap_sync_grad" not in without


OVERLAPPED = {
    "overlap_sync_grad=True": "overlap_sync_grad=False",
    "overlap_sync_param=False": "overlap_sync_param=True",
    "reduce_bucket_size=512 * 1024 * 1024": "reduce_bucket_size=20_000",
    "all_gather_size=512 * 1024 * 1024": "all_gather_size=3_000",
}
"""The keys of communication with other values than in the file."""


def test_its_overlap_keys_change_no_number(tmp_path: Path) -> None:
    """Each of them is in the optimizer, and the losses are the same to the bit."""

    def of_optimizer(cfg: TrainConfig, folder: Path) -> list[Any]:
        mesh = make_mesh(cfg.degrees(2))
        optimizer: Any = make_optimizer(cfg, make_model(cfg, mesh, torch.device("cpu"), drawn=False), mesh)
        run(cfg, folder)
        chunks = len(optimizer.publishing.chunks)
        return [optimizer.overlap, optimizer._overlaps_params, len(optimizer.buckets), chunks]

    seen, losses = {}, {}
    choices = {"file": {}, "other": OVERLAPPED, "parameters": dict([list(OVERLAPPED.items())[1]])}
    for name, lines in choices.items():
        cfg = small(tmp_path, lines=lines)
        seen[name] = run_on_ranks(of_optimizer, 2, cfg, tmp_path / name)[0]
        losses[name] = [(r["loss"], r["grad_norm"]) for r in curve(tmp_path / name)]
    assert seen["file"] == [True, False, 1, 1] and seen["parameters"] == [True, True, 1, 1]
    assert seen["other"][:2] == [False, True] and seen["other"][2] >= 3 and seen["other"][3] >= 24
    assert losses["other"] == losses["parameters"] == losses["file"]


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-3), ("float64", 1e-13)])
def test_it_runs_as_its_isp_form_does(dtype: str, tolerance: float, tmp_path: Path) -> None:
    as_said = f"model.dtype=torch.{dtype}"
    run_on_ranks(run, 4, small(tmp_path, as_said, lines=ISP), tmp_path / "isp")
    run(small(tmp_path, as_said, "data.micro_num=8"), tmp_path / "alone")
    isp, alone = curve(tmp_path / "isp"), curve(tmp_path / "alone")
    for name in ("loss", "grad_norm"):
        assert [r[name] for r in isp] == pytest.approx([r[name] for r in alone], rel=tolerance)
    assert [r["num_consumed_tokens"] for r in isp] == [r["num_consumed_tokens"] for r in alone]
    said = (tmp_path / "isp" / "train.log").read_text()
    assert "data parallel size: 2, pipeline parallel size: 1, tensor parallel size: 2, weight parallel size: 4" in said
    (without,) = re.findall(r"set, but without effect here: (.*)", said)
    assert "parallel.weight" not in without and "parallel.tensor" not in without

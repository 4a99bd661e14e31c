"""The search: what it proposes is legal, the fastest that fits, and never slower with more memory."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evo_core.config import TrainConfig, load_config
from evo_core.errors import ConfigError
from evo_core.estimate.assumptions import Assumptions
from evo_core.estimate.chips import GB, chip
from evo_core.estimate.costs import RankCost
from evo_core.estimate.found import find
from evo_core.estimate.layout import candidates, is_legal
from evo_core.estimate.reason import reason
from evo_core.estimate.search import legal, search
from tests.estimate.files import sketched, write

A100 = Assumptions(chip("a100"), 4, 25 * GB)


def job(folder: Path, **blocks: Any) -> TrainConfig:
    return load_config(write(folder, **blocks))


def test_more_memory_never_makes_the_best_slower(tmp_path: Path) -> None:
    cfg = job(tmp_path)
    seconds = []
    for memory in (0.1, 0.12, 0.15, 0.2, 0.3, 1.0):
        found = search(cfg, 8, memory * GB, A100, sketched)
        seconds.append(found.best[0][1].time.seconds)
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > seconds[-1]


def test_nothing_legal_that_fits_is_faster_than_the_best(tmp_path: Path) -> None:
    cfg, memory = job(tmp_path), 0.15 * GB
    every = [find(each.cfg, 4, A100, sketched) for each in legal(cfg, 4, A100)]
    fitting = min(found.time.seconds for found in every if found.memory <= memory)
    assert search(cfg, 4, memory, A100, sketched).best[0][1].time.seconds <= fitting * 1.02


def test_each_that_is_proposed_is_of_another_kind(tmp_path: Path) -> None:
    best = search(job(tmp_path), 8, GB, A100, sketched).best
    assert len({layout.kind for layout, _ in best}) == len(best) == 5


def test_what_the_rules_refuse_is_not_proposed(tmp_path: Path) -> None:
    """Three key/value heads go with no even number of tensor ranks: the rules say so, not the search."""
    model = {"num_layers": 7, "num_attention_heads": 12, "num_kv_attention_heads": 3, "hidden_size": 768}
    cfg = job(tmp_path, model=model, parallel={"zero1": {"size": 1}})
    every = list(candidates(cfg, 8, 8))
    kept = legal(cfg, 8, A100)
    assert {layout.tensor for layout in every} >= {1, 2, 4, 8}
    assert {each.layout.tensor for each in kept if each.layout.mode != "isp"} == {1}
    assert len(kept) < len(every)
    for each in kept[::5]:
        load_config(tmp_path / "job.yaml", blocks=each.layout.settings(cfg)).check_world(8)


def test_layouts_are_looked_at_once_and_the_settings_are_the_layout(tmp_path: Path) -> None:
    cfg = job(tmp_path, parallel={"tensor": {"size": 2, "mode": "isp"}, "weight": {"size": 2, "overlap": True}})
    every = list(candidates(cfg, 8, 8))
    assert len(set(every)) == len(every)
    for layout in every[::5]:
        changed = layout.applied(cfg)
        if is_legal(changed, 8):
            loaded = load_config(tmp_path / "job.yaml", blocks=layout.settings(cfg))
            assert loaded.parallel == changed.parallel and loaded.model == changed.model
            assert loaded.degrees(8) == changed.degrees(8)


def test_experts_are_dealt_out_where_they_divide(tmp_path: Path) -> None:
    cfg = job(tmp_path, model_type="INTERNLM_MoE", model={"num_experts": 4, "num_kv_attention_heads": 8})
    sizes = {each.layout.expert for each in legal(cfg, 8, A100)}
    assert sizes == {1, 2, 4}
    assert not any(each.layout.fsdp for each in legal(cfg, 8, A100))


def test_micro_batches_are_kept_as_tokens_of_a_step(tmp_path: Path) -> None:
    cfg = job(tmp_path, data={"global_batch_tokens": None, "micro_num": 3})
    numbers = {each.layout.tensor * each.layout.pipeline: each.layout.micro_num for each in legal(cfg, 8, A100)}
    assert numbers == {1: 3, 2: 6, 4: 12, 8: 24}
    with pytest.raises(ConfigError, match="7 ranks do not divide"):  # so the file does not say how many tokens it means
        search(
            job(tmp_path, data={"global_batch_tokens": None}, parallel={"tensor": {"size": 2}}), 7, GB, A100, sketched
        )


def test_a_memory_that_nothing_fits_into_is_told_with_the_nearest_that_does(tmp_path: Path) -> None:
    cfg = job(tmp_path)
    with pytest.raises(ConfigError) as told:
        search(cfg, 2, 0.06 * GB, A100, sketched)
    text = str(told.value)
    assert text.startswith("--gpu-memory: no layout of 2 GPUs fits into 0.06 GB: the smallest needs 0.")
    memory, more = text.partition("(nearest: --gpu-memory ")[2].removesuffix(" GPUs)").split(", or ")
    assert search(cfg, 2, float(memory) * GB, A100, sketched).best
    assert search(cfg, int(more), 0.06 * GB, A100, sketched).best


def test_what_memory_forbids_is_said(tmp_path: Path) -> None:
    searched = search(job(tmp_path), 8, 0.12 * GB, A100, sketched)
    said = [reason(found, searched.held_back.get(layout.kind), layout) for layout, found in searched.best]
    assert any(re.search(r"; memory forbids recompute 0\.\d.* \(0\.\d+ GB\)$", line) for line in said), said


def test_7b_on_1024_gpus() -> None:
    path = Path(__file__).parents[2] / "configs/train/7b.yaml"
    node = Assumptions(chip("a100"), 8, 200 * GB)
    searched = search(load_config(path), 1024, 80 * GB, node, sketched)
    assert searched.legal > 1000 and len(searched.best) == 5
    assert all(found.memory <= 80 * GB for _, found in searched.best)


def test_what_a_run_finds_decides_and_not_the_sketch(tmp_path: Path) -> None:
    def half_more(cfg: TrainConfig, world_size: int, rank: int) -> RankCost:
        cost = sketched(cfg, world_size, rank)
        return replace(cost, activations=cost.activations + cost.total // 2)

    cfg, memory = job(tmp_path), 0.15 * GB
    best = search(cfg, 8, memory, A100, half_more).best
    assert best and all(found.memory <= memory for _, found in best)
    assert best[0][1].time.seconds > search(cfg, 8, memory, A100, sketched).best[0][1].time.seconds

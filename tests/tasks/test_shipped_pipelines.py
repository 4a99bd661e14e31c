"""Every pipeline in configs/pipelines parses and plans without a cluster, and its keys are pinned.

A change that moves a key re-runs that step for everybody who updates: `tests/golden/keys.json` makes it a decision.
Rewrite it with `EVO_UPDATE_GOLDEN=1 pytest tests/tasks/test_shipped_pipelines.py` and say why in the changelog.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flows.pipeline.plan import Plan, make_plan
from flows.pipeline.schema import load_pipeline
from tasks.launch.launcher import launch_runtime
from tasks.store import Store, open_store
from tasks.store.json_file import write_json

ROOT = Path(__file__).parents[2]
PIPELINES = sorted((ROOT / "configs" / "pipelines").glob("*.yaml"))
GOLDEN = ROOT / "tests" / "golden" / "keys.json"
STAND_IN = "0" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in which pretrain-7b and demo were published."""
    store = open_store(tmp_path / "store")
    for name, key, vocab_size in (("pretrain-7b", "1" * 64, 92544), ("demo", "2" * 64, 4096)):
        facts = {"vocab_size": vocab_size}
        made = {"step": "model", "kind": "train.pretrain", "identity": {}, "inputs": {}, "facts": facts}
        write_json(store.home("model", key) / "manifest.json", {"key": key, "type": "model", "attempt": 1, **made})
        store.refs.publish(name, step="model", key=key, type="model", run="before")
    return store


def planned(path: Path, store: Store, tmp_path: Path) -> Plan:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text((ROOT / "tests" / "tasks" / "tokenizer.json").read_text())
    overrides = [f"vars.tokenizer={tokenizer}"] if "tokenizer:" in path.read_text().partition("steps:")[0] else []
    return make_plan(load_pipeline(path, overrides), store, source_digest=STAND_IN)


def test_there_are_the_shipped_pipelines() -> None:
    assert {path.stem for path in PIPELINES} == {
        "demo",
        "demo-finetune",
        "pretrain-7b",
        "finetune-7b",
        "continue-pretrain",
        "data-refresh",
    }


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_keys_are_as_they_were(path: Path, store: Store, tmp_path: Path) -> None:
    keys = {step.name: step.key for step in planned(path, store, tmp_path).steps}
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("EVO_UPDATE_GOLDEN"):
        golden[path.stem] = keys
        write_json(GOLDEN, golden)
    assert keys == golden.get(path.stem)


def test_pretraining_evaluation_and_generation_of_7b_run_on_slurm(store: Store, tmp_path: Path) -> None:
    plan = planned(ROOT / "configs" / "pipelines" / "pretrain-7b.yaml", store, tmp_path)
    asked = {step.name: launch_runtime(step.runtime) for step in plan.steps}
    assert {name: runtime.cluster for name, runtime in asked.items() if runtime is not None} == {
        "model": "slurm",
        "scores": "slurm",
        "samples": "slurm",
    }


def test_the_nightly_refresh_makes_the_shards_that_pretraining_takes(store: Store, tmp_path: Path) -> None:
    plans = [
        planned(ROOT / "configs" / "pipelines" / f"{name}.yaml", store, tmp_path)
        for name in ("pretrain-7b", "data-refresh")
    ]
    assert plans[0].step("shards").key == plans[1].step("shards").key


def test_another_cluster_and_other_ranks_give_the_same_keys(store: Store) -> None:
    path = ROOT / "configs" / "pipelines" / "demo.yaml"
    here = make_plan(load_pipeline(path), store, source_digest=STAND_IN)
    runtime = "steps.model.runtime={cluster: slurm, nodes: 2, ranks_per_node: 2}"
    there = make_plan(load_pipeline(path, [runtime]), store, source_digest=STAND_IN)
    assert [s.key for s in here.steps] == [s.key for s in there.steps]

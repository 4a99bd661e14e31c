"""Layouts on two nodes of a real Slurm cluster, by both ways to launch: the losses, scores and texts of a local run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.endtoend.conftest import HERE, Evo
from tests.endtoend.test_slurm import ON_SLURM, SlurmEvo
from tests.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.slurm

TINY = str(HERE / "tiny.yaml")
FOUR_RANKS = [*ON_SLURM, "--set", "steps.model.runtime.nodes=2"]
SHARED_MODEL = "{nodes: 2, ranks_per_node: 2, cluster: test_slurm.yaml, parallel: {tensor: 2, pipeline: 2}}"
TWO_HEADS = ["--set", "steps.model.params.model.num_kv_attention_heads=2"]
EXPERTS = ["--set", "steps.model.params.model_type=INTERNLM_MoE", "--set", "steps.model.params.model.num_experts=4"]

LAYOUTS = {
    "zero1": "{zero1: 2}",
    "mtp": "{tensor: {size: 2, mode: mtp}}",
    "msp": "{tensor: {size: 2, mode: msp}}",
    "fsp": "{tensor: {size: 2, mode: fsp}}",
    "isp": "{tensor: {size: 2, mode: isp}, weight: {size: 4}}",
    "isp of one copy's rows": "{tensor: {size: 1, mode: isp}, weight: {size: 2}}",
    "pipeline": "{pipeline: 2}",
    "fsdp": "{zero1: {size: 4, fsdp: true}}",
    "stages of tensor ranks": "{pipeline: 2, tensor: {size: 2, mode: msp}}",
}


@pytest.fixture
def evo(tmp_path: Path, slurm: SlurmCluster) -> Iterator[SlurmEvo]:
    evo = SlurmEvo(tmp_path, slurm)
    yield evo
    evo.close()


@pytest.fixture(scope="session")
def wide(whole: Evo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evo]:
    """The tiny model with a key for each query, whose heads two ranks can share; trained by one process here."""
    yield from trained(whole, tmp_path_factory.mktemp("wide"), TWO_HEADS)


@pytest.fixture(scope="session")
def experts(whole: Evo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evo]:
    """The same with four experts a layer."""
    yield from trained(whole, tmp_path_factory.mktemp("experts"), [*TWO_HEADS, *EXPERTS])


def trained(whole: Evo, folder: Path, settings: list[str]) -> Iterator[Evo]:
    evo = Evo(folder)
    data_of(whole, evo)
    evo("run", TINY, "--no-server", "--targets", "model", *settings, "--set", "vars.ranks=1")
    yield evo
    evo.close()


def data_of(whole: Evo, evo: Evo, *, model: bool = False) -> None:
    """Begin a store with what another run made, up to the shards or the model."""
    shutil.copytree(whole.root, evo.root, symlinks=True)
    kinds = ("eval.holdout", "generate.samples") + (() if model else ("train.pretrain",))
    for kind in kinds:
        for home in evo.root.glob(f"artifacts/{kind}-*"):
            shutil.rmtree(home)


def launched_by(evo: SlurmEvo, launch: str) -> None:
    cluster = evo.folder / "test_slurm.yaml"
    cluster.write_text(cluster.read_text() + f"launch: {launch}\n")


def scores(evo: Evo) -> dict[str, Any]:
    return json.loads((evo.artifact("scores") / "scores.json").read_text())["model"]


def texts(evo: Evo) -> list[Any]:
    return [json.loads(line)["ids"] for line in (evo.artifact("samples") / "samples.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["torchrun", "srun"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_on_two_nodes_walks_the_curve_of_one_process(
    whole: Evo, wide: Evo, evo: SlurmEvo, launch: str, layout: str
) -> None:
    data_of(whole, evo)
    launched_by(evo, launch)
    words = [TINY, *FOUR_RANKS, *TWO_HEADS, "--set", f"steps.model.params.parallel={LAYOUTS[layout]}"]
    evo("run", *words, "--no-server", "--targets", "model")
    assert [loss for _, loss in evo.curve()] == pytest.approx([loss for _, loss in wide.curve()], rel=1e-4)
    assert evo.artifact("model").parents[1].name == wide.artifact("model").parents[1].name  # the same key


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["torchrun", "srun"])
@pytest.mark.parametrize("layout", ["{expert: 4}", "{expert: 2, tensor: {size: 2, mode: msp}}"])
def test_experts_dealt_out_over_two_nodes_walk_the_curve_of_one_process(
    whole: Evo, experts: Evo, evo: SlurmEvo, launch: str, layout: str
) -> None:
    data_of(whole, evo)
    launched_by(evo, launch)
    words = [TINY, *FOUR_RANKS, *TWO_HEADS, *EXPERTS, "--set", f"steps.model.params.parallel={layout}"]
    evo("run", *words, "--no-server", "--targets", "model")
    assert [loss for _, loss in evo.curve()] == pytest.approx([loss for _, loss in experts.curve()], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["torchrun", "srun"])
def test_a_model_shared_by_four_ranks_of_two_nodes_scores_and_writes_as_on_one(
    whole: Evo, evo: SlurmEvo, launch: str
) -> None:
    """Two stages of two ranks each, one stage a node."""
    data_of(whole, evo, model=True)
    launched_by(evo, launch)
    layout = [f"--set=steps.{step}.runtime={SHARED_MODEL}" for step in ("scores", "samples")]
    printed = evo("run", TINY, "--no-server", *layout)
    assert "2 steps made, 5 reused" in printed
    here, there = scores(whole), scores(evo)
    assert here.keys() == there.keys()
    for type_, row in here.items():
        assert there[type_]["tokens"] == row["tokens"]
        assert there[type_]["loss"] == pytest.approx(row["loss"], rel=1e-5)
    assert texts(evo) == texts(whole)

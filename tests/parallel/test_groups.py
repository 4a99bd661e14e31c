"""All groups of 1024 ranks by arithmetic alone: InternEvo's order, and the same that DeviceMesh makes."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from evo_core.config import load_config
from evo_core.parallel.degrees import AxisName, Degrees
from evo_core.parallel.mesh import make_mesh
from tests.config.jobs import CONFIGS
from tests.forked import in_a_process

WORLD = 1024
SAMPLED = (0, 777)
AXES: tuple[AxisName, ...] = get_args(AxisName)

T, STAGES = 8, 4
SPLIT = Degrees(pipeline=STAGES, tensor=T, data=32, weight=1, weight_data=32, zero1=8)
GATHERED = Degrees(pipeline=STAGES, tensor=T, data=32, weight=16, weight_data=16, zero1=4)


def groups(degrees: Degrees, axis: AxisName) -> set[tuple[int, ...]]:
    return {degrees.ranks_of(axis, rank) for rank in range(degrees.world)}


@pytest.mark.parametrize("degrees", [SPLIT, GATHERED])
def test_every_rank_is_in_one_group_of_each_axis(degrees: Degrees) -> None:
    for axis in AXES:
        found = groups(degrees, axis)
        assert sorted(rank for group in found for rank in group) == list(range(degrees.world))
        assert {len(group) for group in found} == {degrees.line(axis).size}
        for group in found:
            assert [degrees.line(axis).number(rank) for rank in group] == list(range(len(group)))
            assert group == tuple(sorted(group))


def test_internevos_order() -> None:
    """As its documentation has it, with blocks of R = world / pipeline ranks: tensor groups are consecutive ranks, data
    groups i*R + j + k*t, pipeline groups i + j*R; ZeRO groups have the stride t (isp: of weight), weight groups are
    consecutive inside a stage, and weight-data groups have their stride."""
    block, wp = WORLD // STAGES, GATHERED.weight

    def runs(size: int) -> set[tuple[int, ...]]:
        return {tuple(range(start, start + size)) for start in range(0, WORLD, size)}

    def strided(stride: int, size: int) -> set[tuple[int, ...]]:
        """Each run of stride * size ranks dealt out to groups; runs do not cross stages, whose size they divide."""
        starts = [
            i * block + r + j for i in range(STAGES) for r in range(0, block, stride * size) for j in range(stride)
        ]
        return {tuple(start + k * stride for k in range(size)) for start in starts}

    for degrees in (SPLIT, GATHERED):
        assert groups(degrees, "tensor") == runs(T)
        assert groups(degrees, "data") == strided(T, block // T)
        assert groups(degrees, "pipeline") == {tuple(i + j * block for j in range(STAGES)) for i in range(block)}
        assert groups(degrees, "world") == {tuple(range(WORLD))}
    assert groups(SPLIT, "zero") == strided(T, 8)
    assert groups(SPLIT, "weight_data") == groups(SPLIT, "data")
    assert groups(SPLIT, "weight") == runs(1)
    assert groups(GATHERED, "weight") == runs(wp)
    assert groups(GATHERED, "weight_data") == strided(wp, block // wp)
    assert groups(GATHERED, "weight_zero") == strided(wp, 4)
    assert groups(GATHERED, "zero") == strided(T, 4)  # of what is not gathered
    replicas: list[tuple[Degrees, AxisName, int, int]] = [
        (SPLIT, "replica", T * 8, 4),
        (GATHERED, "weight_replica", wp * 4, 4),
        (GATHERED, "replica", T * 4, 8),
    ]
    for degrees, axis, apart, count in replicas:
        (first, second, *_) = degrees.ranks_of(axis, 5)
        assert (first, second - first, len(degrees.ranks_of(axis, 5))) == (5, apart, count)


def test_there_is_no_such_rank() -> None:
    for rank in (-1, WORLD):
        with pytest.raises(ValueError, match=f"rank {rank} of 1024"):
            SPLIT.ranks_of("tensor", rank)


@pytest.mark.parametrize(
    "overrides",
    [
        ["parallel.tensor.size=8"],
        ["parallel.tensor.size=8", "parallel.tensor.mode=msp", "parallel.zero1.size=-1"],
        ["parallel.tensor.size=2", "parallel.tensor.mode=fsp", "parallel.zero1.size=64"],
        ["parallel.tensor.size=32", "parallel.zero1.size=1"],
    ],
)
def test_the_7b_job_on_1024_ranks(tmp_path: Path, overrides: list[str]) -> None:
    """Every group of every rank by arithmetic, and the mesh of sampled ranks on a process group that only pretends."""
    degrees = load_config(CONFIGS / "train" / "7B_sft.py", overrides).degrees(WORLD)
    began = time.perf_counter()
    everyone = {axis: [degrees.ranks_of(axis, rank) for rank in range(WORLD)] for axis in AXES}
    print(f"{len(AXES)} groups of each of {WORLD} ranks in {time.perf_counter() - began:.3f} s")

    def made() -> dict[str, tuple[int, ...]]:
        mesh = make_mesh(degrees)
        axes = [getattr(mesh, name) for name in ("world", "pipeline", "data", "replica", "zero", "tensor")]
        assert all(axis.ranks == tuple(dist.get_process_group_ranks(axis.group)) for axis in axes)
        return {axis.name: axis.ranks for axis in axes}

    for rank in SAMPLED:
        assert pretending(made, rank, tmp_path) == {
            axis: everyone[axis][rank] for axis in ("world", "pipeline", "data", "replica", "zero", "tensor")
        }


def test_isps_views_of_1024_ranks(tmp_path: Path) -> None:
    """Weights are cut over an axis of its own, so a rank is in two meshes at once."""

    def made() -> dict[str, tuple[int, ...]]:
        mesh = make_mesh(GATHERED)
        assert mesh.weights is not None
        axes = [mesh.world, mesh.pipeline, mesh.data, mesh.replica, mesh.zero, mesh.tensor]
        axes += [mesh.weights.cut, mesh.weights.data, mesh.weights.replica, mesh.weights.zero]
        assert all(axis.ranks == tuple(dist.get_process_group_ranks(axis.group)) for axis in axes)
        return {axis.name: axis.ranks for axis in axes}

    of_isp = [axis for axis in AXES if not axis.startswith("expert")]
    for rank in SAMPLED:
        assert pretending(made, rank, tmp_path) == {axis: GATHERED.ranks_of(axis, rank) for axis in of_isp}


def test_who_shares_the_experts_of_a_mixture(tmp_path: Path) -> None:
    """Runs of neighbours among the data ranks; the ranks that hold the same experts share states inside a ZeRO group
    that has whole runs, and none where a run is as long as it."""

    def made(degrees: Degrees) -> dict[str, tuple[int, ...]]:
        mesh = make_mesh(degrees)
        assert mesh.experts is not None
        axes = [mesh.experts.cut, mesh.experts.data, mesh.experts.replica, mesh.experts.zero]
        assert all(axis.ranks == tuple(dist.get_process_group_ranks(axis.group)) for axis in axes)
        return {axis.name: axis.ranks for axis in axes}

    for expert, zero1, sizes in ((4, 8, (4, 8, 4, 2)), (8, 8, (8, 4, 4, 1)), (2, 32, (2, 16, 1, 16))):
        degrees = replace(SPLIT, expert=expert, zero1=zero1)
        axes: list[AxisName] = ["expert", "expert_data", "expert_replica", "expert_zero"]
        assert tuple(degrees.line(axis).size for axis in axes) == sizes
        run = degrees.ranks_of("expert", 777)
        assert run[1] - run[0] == T and set(run) <= set(degrees.ranks_of("data", 777))
        assert set(degrees.ranks_of("expert_zero", 777)) <= set(degrees.ranks_of("zero", 777))
        same = degrees.ranks_of("expert_data", 777)
        assert {degrees.line("expert").number(rank) for rank in same} == {degrees.line("expert").number(777)}
        assert {other for rank in same for other in degrees.ranks_of("expert", rank)} == set(
            degrees.ranks_of("data", 777)
        )
        found = pretending(lambda degrees=degrees: made(degrees), 777, tmp_path)
        assert found == {axis: degrees.ranks_of(axis, 777) for axis in axes}


def test_the_page_says_which_ranks_are_together() -> None:
    page = (CONFIGS.parent / "docs" / "parallelism.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", snippet], cwd=CONFIGS.parent, capture_output=True, text=True)
    assert done.stdout.splitlines() == re.findall(r"  # (.*)$", snippet, re.MULTILINE), done.stderr


def pretending(call: Callable[[], Any], rank: int, folder: Path) -> Any:
    """What a call returns on one of 1024 ranks that are not there, in a process of its own."""

    def run() -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=WORLD)
        (folder / "answer").write_bytes(pickle.dumps(call()))

    assert in_a_process(run) == 0
    return pickle.loads((folder / "answer").read_bytes())

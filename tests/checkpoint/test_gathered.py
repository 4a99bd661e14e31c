"""Checkpoints of a model whose weights are gathered when they are used (isp): to and from every other layout, who
writes what, and what is compared before."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from evo_core.checkpoint import load_model
from evo_core.checkpoint.tensors import model_tensors
from evo_core.checkpoint.writers import cut, own_parts
from evo_core.placement import Rectangle, tiling_fault
from tests.checkpoint.model_states import Layout, config, differing, held, said_of_drift, saved, state_of, truth
from tests.ranks import run_on_ranks


def isp(tensor: int, weight: int, zero: int = 1, groups: int = 1, pipeline: int = 1, **stages: Any) -> Layout:
    return Layout(tensor, zero, pipeline, weight=weight, groups=groups, **stages)


Move = tuple[str, Layout, Layout]
"""Family, and from where to where its checkpoints go."""

ONE, ZERO, TENSOR, BOTH = Layout(1, 1), Layout(1, 4), Layout(4, 1), Layout(2, 2)
STAGES, V = Layout(1, 1, 2), Layout(1, 1, 2, 2, is_v=True)
ISP = [isp(1, 2), isp(2, 1, 2), isp(2, 2), isp(1, 4), isp(2, 4), isp(4, 2, 2), isp(4, 1, 2, 2), isp(2, 2, groups=2)]
ISP_STAGES = [isp(2, 2, pipeline=2), isp(1, 2, pipeline=2, chunks=2), isp(2, 1, 2, pipeline=2, chunks=2, is_v=True)]
LAYERS = {"num_layers": 4}
ONE_KV_HEAD, BIASES, NORMS_OF_HEADS, EXPERTS, TIED = "INTERNLM2_PUBLIC", "INTERNLM", "QWEN3", "INTERNLM_MoE", "LLAMA3"
CHANGES = {ONE_KV_HEAD: {"num_kv_attention_heads": 1}}

SOME: list[Move] = [
    (ONE_KV_HEAD, ISP[4], ONE),
    (ONE_KV_HEAD, ONE, ISP[5]),
    (ONE_KV_HEAD, ISP[5], ISP[1]),
    (BIASES, ISP[4], ZERO),
    (BIASES, TENSOR, ISP[2]),
    (NORMS_OF_HEADS, ISP[2], TENSOR),
    (NORMS_OF_HEADS, BOTH, ISP[7]),
    (EXPERTS, ISP[2], BOTH),
    (EXPERTS, ZERO, ISP[4]),
    (TIED, ISP_STAGES[0], V),
    (TIED, V, ISP[5]),
]
MORE: list[Move] = [
    *(move for one in ISP for move in ((ONE_KV_HEAD, one, ONE), (ONE_KV_HEAD, ONE, one))),
    *((TIED, *move) for move in itertools.pairwise([*ISP, *ISP_STAGES, ISP[0]])),
    *(move for one in ISP_STAGES for move in ((TIED, one, V), (TIED, STAGES, one), (EXPERTS, one, TENSOR))),
    *((family, *m) for family in (BIASES, NORMS_OF_HEADS, EXPERTS) for m in ((ISP[5], ONE), (ZERO, ISP[5]))),
]


def settings(family: str) -> dict[str, Any]:
    return {**LAYERS, **CHANGES.get(family, {})}


@pytest.mark.parity
@pytest.mark.parametrize("moves", [SOME, pytest.param(MORE, marks=pytest.mark.slow)], ids=["some", "more"])
def test_tensors_are_the_same_bits_at_every_layout(tmp_path: Path, moves: list[Move]) -> None:
    """Weights, moments and master values."""
    for ranks in (1, 2, 4):
        own = sorted({(family, written) for family, written, _ in moves if written.ranks == ranks})
        run_on_ranks(lambda own=own: [saved(tmp_path, *each, **settings(each[0])) for each in own] and None, ranks)
    for ranks in (1, 2, 4):
        asked = [move for move in moves if move[2].ranks == ranks]
        found = run_on_ranks(
            lambda asked=asked: {str(m): n for m in asked if (n := differing(tmp_path, *m, **settings(m[0])))}, ranks
        )
        assert found == [{}] * ranks


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_one_process_and_torch_itself_see_one_whole_model(tmp_path: Path) -> None:
    layout = isp(2, 4)
    run_on_ranks(lambda: saved(tmp_path, BIASES, layout) and None, 4)
    loaded, _ = load_model(tmp_path / BIASES / str(layout))
    wanted = {name: truth(name, placed) for name, placed in model_tensors(loaded).items()}
    plain = {name: torch.empty_like(tensor) for name, tensor in wanted.items()}
    dcp.load(plain, checkpoint_id=tmp_path / BIASES / str(layout) / "1" / "model", no_dist=True)
    for tensors in (loaded.state_dict(), plain):
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in tensors.items())


def written(family: str, layout: Layout) -> dict[str, tuple[tuple[int, ...], list[Rectangle], int]]:
    """Of each tensor its shape, and what this rank writes of it: rectangles, and bytes."""
    every = dict(held(*state_of(config(family, **settings(family)), layout)))
    found = {}
    for name, parts in own_parts(cut(every), dist.get_rank()).items():
        nbytes = sum(values.nbytes for _, values in parts)
        found[name] = every[name].placement.shape, [where for where, _ in parts], nbytes
    return found


@pytest.mark.parametrize("layout", [isp(2, 4), isp(4, 2, 2), isp(2, 2, groups=2), isp(1, 2, pipeline=2)], ids=str)
@pytest.mark.parametrize("family", [ONE_KV_HEAD, EXPERTS])
def test_every_element_is_written_once_and_as_much_by_each(family: str, layout: Layout) -> None:
    everyone = run_on_ranks(written, 4, family, layout)
    rectangles: dict[str, list[Rectangle]] = defaultdict(list)
    for rank in everyone:
        for name, (_, own, _) in rank.items():
            rectangles[name] += own
    shapes = {name: shape for rank in everyone for name, (shape, *_) in rank.items()}
    assert shapes == {name: shape for name, (shape, *_) in run_on_ranks(written, 1, family, ONE)[0].items()}
    assert {name: fault for name in shapes if (fault := tiling_fault(shapes[name], rectangles[name]))} == {}
    nbytes = [sum(nbytes for *_, nbytes in rank.values()) for rank in everyone]
    assert max(nbytes) < 1.01 * min(nbytes)  # of two stages too: they have the same layers, and each has an end


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("layers.0.feed_forward.w1.weight", "rank 1 than on rank 3"),  # each of two weight ranks twice
        ("output.weight", "rank 1 than on rank 3"),  # each of two tensor ranks twice
        ("layers.0.attention_norm.weight", "ranks 0, 1, 2 than on rank 3"),
    ],
)
@pytest.mark.parametrize(("part", "value"), [("model", ""), ("optimizer", "exp_avg.")])
def test_ranks_that_have_drifted_apart_are_told(tmp_path: Path, name: str, others: str, part: str, value: str) -> None:
    layout, cfg = isp(2, 2, groups=2), config(ONE_KV_HEAD)
    (said,) = set(run_on_ranks(said_of_drift, 4, tmp_path, cfg, layout, f"{value}{name}"))
    assert f"{part}/{value}{name} has other values on {others}" in said
    assert not any(tmp_path.iterdir())

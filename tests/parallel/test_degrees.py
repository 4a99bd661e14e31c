"""Degrees from the ``parallel`` block and the number of ranks: refusals name the nearest legal choice."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evo_core.config.schema.parallel import ParallelConfig
from evo_core.errors import ConfigError
from evo_core.nearest import divisors, nearest
from evo_core.parallel.degrees import Degrees, data_parallel_size, degree_errors


def degrees(parallel: dict[str, Any], world_size: int) -> Degrees:
    return Degrees.of(ParallelConfig.model_validate(parallel), world_size)


@pytest.mark.parametrize(
    ("parallel", "world_size", "message"),
    [
        (
            {"zero1": 3},
            8,
            "parallel.zero1.size: 3 does not divide the 8 data-parallel ranks (8 ranks / pipeline 1 / tensor 1) "
            "(nearest: 2 or 4; -1 takes all)",
        ),
        ({"zero1": 16}, 8, "16 does not divide the 8 data-parallel ranks"),
        (
            {"tensor": 3},
            8,
            "parallel.tensor.size: 8 ranks do not divide into pipeline.size 1 x tensor.size 3 "
            "(nearest: tensor.size 2 or 4, or 6 or 9 ranks)",
        ),
        (
            {"tensor": 4, "pipeline": 2},
            12,
            "parallel.tensor.size: 12 ranks do not divide into pipeline.size 2 x tensor.size 4 "
            "(nearest: tensor.size 3 or 6, or pipeline.size 1 or 3, or 8 or 16 ranks)",
        ),
        (
            {"pipeline": 3},
            8,
            "parallel.pipeline.size: 8 ranks do not divide into pipeline.size 3 x tensor.size 1 "
            "(nearest: pipeline.size 2 or 4, or 6 or 9 ranks)",
        ),
        (  # the layers can be shared by so many, but not in so many stages
            {"pipeline": 5, "tensor": 2},
            12,
            "parallel.pipeline.size: 12 ranks do not divide into pipeline.size 5 x tensor.size 2 "
            "(nearest: pipeline.size 3 or 6, or 10 or 20 ranks)",
        ),
        (
            {"pipeline": 3, "tensor": 3},
            8,
            "parallel.tensor.size: 8 ranks do not divide into pipeline.size 3 x tensor.size 3 "
            "(nearest: pipeline.size 2 with tensor.size 2, or 9 ranks)",
        ),
        (
            {"pipeline": 4},
            2,
            "parallel.pipeline.size: 2 ranks do not divide into pipeline.size 4 x tensor.size 1 "
            "(nearest: pipeline.size 2, or 4 ranks)",
        ),
        ({"tensor": {"mode": "isp"}, "weight": 5}, 8, "8 ranks do not divide into pipeline.size 1 x weight.size 5"),
        (
            {"tensor": {"size": 2, "mode": "isp"}, "weight": 4, "zero1": 4},
            8,
            "parallel.zero1.size: 4 does not divide the 2 ranks that hold the same part of the weights "
            "(8 ranks / pipeline 1 / weight 4) (nearest: 2; -1 takes all)",
        ),
        (
            {"tensor": 2, "zero1": 4},
            12,
            "parallel.zero1.size: 4 does not divide the 6 data-parallel ranks (12 ranks / pipeline 1 / tensor 2) "
            "(nearest: 3 or 6; -1 takes all)",
        ),
        (
            {"tensor": 2},
            1,
            "1 rank does not divide into pipeline.size 1 x tensor.size 2 (nearest: tensor.size 1, or 2 ranks)",
        ),
        (
            {"tensor": 4},
            2,
            "2 ranks do not divide into pipeline.size 1 x tensor.size 4 (nearest: tensor.size 2, or 4 ranks)",
        ),
    ],
)
def test_impossible_layouts(parallel: dict[str, Any], world_size: int, message: str) -> None:
    errors = list(degree_errors(ParallelConfig.model_validate(parallel), world_size))
    assert len(errors) == 1
    assert message in str(errors[0])


def test_possible_layouts() -> None:
    for parallel, world_size in (
        ({}, 3),
        ({"zero1": 4}, 8),
        ({"zero1": 0}, 8),
        ({"tensor": 2, "pipeline": 2, "zero1": 2}, 8),
        ({"tensor": {"size": 4, "mode": "isp"}, "weight": 2, "zero1": 4}, 8),
    ):
        assert not list(degree_errors(ParallelConfig.model_validate(parallel), world_size))


@given(st.integers(1, 64), st.integers(1, 70))
def test_the_nearest_choices_are_legal(ranks: int, zero1: int) -> None:
    errors = list(degree_errors(ParallelConfig.model_validate({"zero1": zero1}), ranks))
    assert bool(errors) == bool(ranks % zero1)
    if errors:
        named = nearest(zero1, divisors(ranks)).split(" or ")
        assert ", ".join(named).replace(", ", " or ") in str(errors[0])
        for choice in named:
            assert not list(degree_errors(ParallelConfig.model_validate({"zero1": int(choice)}), ranks))


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 8), st.integers(1, 8))
@example(6, 1, 3, 4)
def test_the_nearest_choices_beside_two_sizes_are_legal(ranks: int, stages: int, tensor: int, weight: int) -> None:
    def errors(world_size: int = ranks, **sizes: int) -> list[str]:
        sizes = {"pipeline": stages, "tensor": tensor, "weight": weight} | sizes
        parallel = {**sizes, "tensor": {"size": sizes["tensor"], "mode": "isp"}}
        return [str(error) for error in degree_errors(ParallelConfig.model_validate(parallel), world_size)]

    found = errors()
    assert bool(found) == bool(ranks % (stages * tensor) or ranks % (stages * weight))
    if not found:
        return
    hint = found[0].partition("nearest: ")[2]
    (other_ranks,) = re.findall(r"([\d or]+) ranks", hint)
    assert not [number for number in re.findall(r"\d+", other_ranks) if errors(int(number))]
    if " with " in hint:  # of the two that are both to change, one alone is not enough
        return
    for name, numbers in re.findall(r"(pipeline|tensor|weight)\.size ([\d or]+)", hint):
        for number in re.findall(r"\d+", numbers):
            left = errors(**{name: int(number)})
            assert not left or (name == "tensor" and "x weight.size" in left[0])  # told next


def test_all_of_it_is_arithmetic_without_torch() -> None:
    code = (
        "import sys; from evo_core.config.schema.parallel import ParallelConfig; "
        "from evo_core.parallel.degrees import Degrees; "
        "print(Degrees.of(ParallelConfig.model_validate({'zero1': 4}), 8).replicas); "
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "2\n"


@pytest.mark.parametrize(
    ("parallel", "world_size", "expected"),
    [
        ({}, 3, Degrees(pipeline=1, tensor=1, data=3, weight=1, weight_data=3, zero1=3)),
        ({"zero1": 0}, 2, Degrees(pipeline=1, tensor=1, data=2, weight=1, weight_data=2, zero1=2)),
        ({"zero1": 2}, 8, Degrees(pipeline=1, tensor=1, data=8, weight=1, weight_data=8, zero1=2)),
        (
            {"tensor": 2, "pipeline": 2, "zero1": 2},
            16,
            Degrees(pipeline=2, tensor=2, data=4, weight=1, weight_data=4, zero1=2),
        ),
        (  # isp cuts the weights over an axis of its own, and the sequence over tensor's
            {"tensor": {"size": 4, "mode": "isp"}, "weight": 2, "zero1": 2},
            8,
            Degrees(pipeline=1, tensor=4, data=2, weight=2, weight_data=4, zero1=2),
        ),
    ],
)
def test_degrees(parallel: dict[str, Any], world_size: int, expected: Degrees) -> None:
    got = degrees(parallel, world_size)
    assert got == expected
    assert got.pipeline * got.data * got.tensor == world_size
    assert got.replicas * got.zero == got.data
    assert got.weight_data % got.zero1 == 0
    assert data_parallel_size(ParallelConfig.model_validate(parallel), world_size) == got.data


def test_what_does_not_fit_is_refused_with_the_nearest_choice() -> None:
    with pytest.raises(ConfigError, match=r"zero1\.size: 3 does not divide the 4 .*nearest: 2 or 4"):
        degrees({"zero1": 3}, 4)
    # the number of ranks that see data is there whether or not their optimizer state can be cut so
    assert data_parallel_size(ParallelConfig.model_validate({"zero1": 3}), 4) == 4
    with pytest.raises(ConfigError, match="4 ranks do not divide into"):
        data_parallel_size(ParallelConfig.model_validate({"tensor": 3}), 4)


def test_inference_shares_layers_over_some_ranks_and_prompts_over_the_others() -> None:
    keys = ("--tensor", "--pipeline")
    assert Degrees.of_inference(2, 1, 8, keys) == degrees({"tensor": 2, "zero1": 1}, 8)
    assert Degrees.of_inference(2, 2, 8, keys) == degrees({"tensor": 2, "pipeline": 2, "zero1": 1}, 8)


@pytest.mark.parametrize(
    ("tensor", "pipeline", "ranks", "message"),
    [
        (3, 1, 8, "--tensor: 8 ranks do not divide by 3 (nearest: 2 or 4, or start 9 ranks)"),
        (1, 3, 8, "--pipeline: 8 ranks do not divide by 3 (nearest: 2 or 4, or start 9 ranks)"),
        (1, 2, 1, "--pipeline: 1 rank does not divide by 2 (nearest: 1, or start 2 ranks)"),
        (
            2,
            3,
            8,
            "--pipeline: 8 ranks do not divide into pipeline 3 x tensor 2 (nearest: pipeline 2 or 4, or start 12 "
            "ranks)",
        ),
        (
            4,
            4,
            8,
            "--tensor: 8 ranks do not divide into pipeline 4 x tensor 4 (nearest: tensor 2, or pipeline 2, or start 16 "
            "ranks)",
        ),
        (
            3,
            3,
            8,
            "--tensor: 8 ranks do not divide into pipeline 3 x tensor 3 (nearest: pipeline 2 with tensor 2, or start 9 "
            "ranks)",
        ),
        (0, 1, 8, "--tensor: 0 must be 1 or more"),
        (1, -1, 8, "--pipeline: -1 must be 1 or more"),
    ],
)
def test_an_impossible_layout_of_inference(tensor: int, pipeline: int, ranks: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Degrees.of_inference(tensor, pipeline, ranks, ("--tensor", "--pipeline"))
    assert str(caught.value) == message


SIZES = (1, 2, 4)


@pytest.mark.parametrize("world", [4, 8])
@pytest.mark.parametrize("pipeline", [1, 2])
@pytest.mark.parametrize("tensor", SIZES)
@pytest.mark.parametrize("weight", SIZES)
def test_the_ranks_of_isp(world: int, pipeline: int, tensor: int, weight: int) -> None:
    """Its two sizes know nothing of each other: each weight is on a run of neighbours inside a stage, however those
    share the sequence, and ranks that hold the same part of it are a run apart. All of a stage have the same stage."""
    stage = world // pipeline
    if stage < max(tensor, weight):
        return
    held_alike = stage // weight
    for zero1 in (0, *(size for size in (1, 2, 4) if held_alike % size == 0)):
        got = degrees(
            {"pipeline": pipeline, "tensor": {"size": tensor, "mode": "isp"}, "weight": weight, "zero1": zero1}, world
        )
        assert (got.data, got.weight_data, got.zero1) == (stage // tensor, held_alike, zero1 or held_alike)
        assert got.gathers_weights == ((tensor, weight) != (1, 1))
        # Of what all data ranks hold alike: all share its state where all that hold a weight do, else as many as can.
        assert got.zero == (
            got.data if got.zero1 == held_alike else max(n for n in SIZES if not (zero1 % n or got.data % n))
        )
        for rank in range(world):
            first, place = rank // stage * stage, rank % stage
            run = first + place // weight * weight
            assert got.ranks_of("weight", rank) == tuple(range(run, run + weight))
            alike = got.ranks_of("weight_data", rank)
            assert alike == tuple(range(first + place % weight, first + stage, weight))
            shared = got.ranks_of("weight_zero", rank)
            number = alike.index(rank) // got.zero1 * got.zero1
            assert shared == alike[number : number + got.zero1]
            assert got.ranks_of("weight_replica", rank) == alike[alike.index(rank) % got.zero1 :: got.zero1]
            sequence = first + place // tensor * tensor
            assert got.ranks_of("tensor", rank) == tuple(range(sequence, sequence + tensor))
            assert got.ranks_of("data", rank) == tuple(range(first + place % tensor, first + stage, tensor))

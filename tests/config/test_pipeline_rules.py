"""What fits to the stages of a pipeline, and the nearest choices where something does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evo_core.config import TrainConfig, load_config
from evo_core.config.pipeline_rules import staging_error
from evo_core.config.resolve import merge
from evo_core.errors import ConfigError
from tests.config.jobs import CONFIGS, job, refusal


def stages(size: int, mode: str = "1F1B", *, chunks: int = 1, **changes: Any) -> dict[str, Any]:
    """A pipeline, whose layers (8), chunks and micro-batches (a multiple of 24) fit where nothing else is said."""
    fitting = {"model": {"num_layers": 8, "num_chunks": chunks}, "data": {"micro_num": 24}}
    return merge(fitting | {"parallel": {"pipeline": {"size": size, "mode": mode}}}, changes)


FITTING = {
    "two stages": stages(2),
    "a stage for every layer": stages(8),
    "stages that do not divide the layers": stages(3),
    "two chunks": stages(2, chunks=2),
    "a layer for every stage of every chunk": stages(2, chunks=4),
    "uneven chunks": stages(3, chunks=2),
    "ZBH1": stages(4, "ZBH1"),
    "ZBV": stages(2, "ZBV", chunks=2),
    "compiled blocks": stages(2, chunks=2, model={"compile": True}),
    "fewer micro-batches than stages": stages(4, data={"micro_num": 1}),
    "a number of micro-batches that is no multiple of the stages": stages(4, data={"micro_num": 5}),
    "ramp-up by other numbers than multiples": stages(4, chunks=2, data={"rampup_batch_size": "1 1 2"}),
    "with tensor ranks": stages(2, chunks=2, parallel={"tensor": {"size": 2, "mode": "msp"}}),
    "chunks without a pipeline": stages(1, chunks=3),
    "ZBV without a pipeline": stages(1, "ZBV", chunks=1),
}

REFUSED = {
    "zero-bubble with compiled blocks": (
        stages(2, "ZBH1", model={"compile": True}),
        "model.compile: ZBH1 makes the gradients of weights apart, and a compiled block makes all at once "
        "(set it to false, or pipeline.mode to 1F1B)",
    ),
    "fewer layers than stages": (
        stages(9),
        "parallel.pipeline.size: 8 layers are too few for 9 stages (nearest: 8)",
    ),
    "fewer layers than stages times chunks": (
        stages(4, chunks=4),
        "model.num_chunks: 8 layers are too few for pipeline.size 4 x num_chunks 4 (nearest: num_chunks 2, or "
        "pipeline.size 2)",
    ),
    "fewer layers than stages, with chunks": (
        stages(12, chunks=2),
        "parallel.pipeline.size: 8 layers are too few for pipeline.size 12 x num_chunks 2 (nearest: pipeline.size 4)",
    ),
    "as many chunks as layers": (
        stages(9, chunks=8, data={"micro_num": 9}),
        "parallel.pipeline.size: 8 layers are too few for pipeline.size 9 x num_chunks 8 (nearest: num_chunks 1 and "
        "pipeline.size 8)",
    ),
    "layers that do not divide into chunks": (
        stages(2, chunks=3),
        "model.num_chunks: 8 layers do not divide into 3 chunks (nearest: num_chunks 2 or 4)",
    ),
    "of the divisors some leave stages empty": (
        stages(4, chunks=3),
        "model.num_chunks: 8 layers do not divide into 3 chunks (nearest: num_chunks 2)",
    ),
    "micro-batches with chunks": (
        stages(3, chunks=2, data={"micro_num": 4}),
        "data.micro_num: with num_chunks 2 must be a multiple of pipeline.size 3, not 4 (nearest: 3 or 6, or "
        "num_chunks 1)",
    ),
    "one micro-batch with chunks": (
        stages(4, chunks=2, data={"micro_num": 1}),
        "data.micro_num: with num_chunks 2 must be a multiple of pipeline.size 4, not 1 (nearest: 4, or num_chunks 1)",
    ),
    "ZBV with one chunk": (
        stages(2, "ZBV"),
        "model.num_chunks: 1: ZBV has 2 chunks on each rank (set it to 2, or pipeline.mode to 1F1B)",
    ),
    "ZBV with four chunks": (
        stages(2, "ZBV", chunks=4),
        "model.num_chunks: 4: ZBV has 2 chunks on each rank (set it to 2, or pipeline.mode to 1F1B)",
    ),
    "ZBV with too few layers": (
        stages(8, "ZBV", chunks=2),
        "parallel.pipeline.size: 8 layers are too few for pipeline.size 8 x num_chunks 2 (nearest: pipeline.size 4)",
    ),
    "ZBV with an odd number of layers": (
        stages(2, "ZBV", chunks=2, model={"num_layers": 7}),
        "model.num_chunks: 7 layers do not divide into 2 chunks (nearest: pipeline.mode ZBH1 and num_chunks 1)",
    ),
    "ZBV with some micro-batches": (
        stages(4, "ZBV", chunks=2, data={"micro_num": 6}),
        "data.micro_num: with num_chunks 2 must be a multiple of pipeline.size 4, not 6 (nearest: 4 or 8)",
    ),
    "ZBH1 with chunks": (
        stages(2, "ZBH1", chunks=2),
        "model.num_chunks: 2: ZBH1 has 1 chunk on each rank (set it to 1, or pipeline.mode to 1F1B)",
    ),
    "fsdp": (
        stages(2, parallel={"zero1": {"fsdp": True}}),
        "parallel.zero1.fsdp: fsdp needs pipeline.size 1 (set it to false)",
    ),
    "no stages": (
        stages(2, parallel={"pipeline": {"size": 0}}),
        "parallel.pipeline.size: must be at least 1, not 0",
    ),
    "another schedule": (
        stages(2, "GPipe"),
        'parallel.pipeline.mode: must be "1F1B", "ZBH1" or "ZBV", not "GPipe"',
    ),
}


@pytest.mark.parametrize("name", FITTING)
def test_fits(name: str) -> None:
    job(FITTING[name])


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_with_the_nearest_choice(name: str) -> None:
    changes, message = REFUSED[name]
    assert refusal(changes) == message


def parts(size: int, layers: int, chunks: int, mode: str) -> dict[str, Any]:
    return stages(size, mode, chunks=chunks, model={"num_layers": layers}, data={"micro_num": 27720})


@settings(max_examples=150)
@given(st.integers(2, 9), st.integers(1, 40), st.integers(1, 9), st.sampled_from(["1F1B", "ZBV"]))
def test_what_is_proposed_fits(size: int, layers: int, chunks: int, mode: str) -> None:
    """Each of the choices in a message alone leads to a job that fits."""
    asked = parts(size, layers, 2 if mode == "ZBV" else chunks, mode)
    try:
        job(asked)
        return
    except ConfigError as error:
        assert error.hint is not None
        told = error.hint.removeprefix("nearest: ")
    if told.isdecimal():
        told = f"pipeline.size {told}"
    for choice in told.split(", or "):
        changes: dict[str, Any] = {}
        for part in choice.split(" and "):
            name, values = re.fullmatch(r"(\S+) (.*)", part).groups()  # type: ignore[union-attr]
            changes[name] = values.split(" or ")
        for pick in (0, -1):
            fixed = merge(asked, {})
            for name, values in changes.items():
                block, key = ("model", name) if name == "num_chunks" else ("parallel", name)
                owner = fixed[block] if block == "model" else fixed["parallel"]["pipeline"]
                owner[key.removeprefix("pipeline.")] = values[pick]
            job(fixed)


def in_tokens(tokens: int, chunks: int = 2) -> TrainConfig:
    return job(stages(2, chunks=chunks, data={"micro_num": None, "global_batch_tokens": tokens}))


def test_a_batch_in_tokens_gives_chunks_whole_groups_of_micro_batches() -> None:
    in_tokens(2048 * 6).check_world(2)
    in_tokens(2048 * 6, chunks=1).check_world(4)
    with pytest.raises(ConfigError) as caught:
        in_tokens(2048 * 6).check_world(4)
    assert str(caught.value) == (
        "data.global_batch_tokens: 12288 tokens are a micro_num of 3 at data-parallel size 2, which with num_chunks 2 "
        "must be a multiple of pipeline.size 2 (nearest: 8192 or 16384 tokens, or num_chunks 1)"
    )
    for tokens in (8192, 16384):
        in_tokens(tokens).check_world(4)
    with pytest.raises(ConfigError, match="they do not divide over 2 data-parallel ranks") as caught:
        in_tokens(2048 * 5).check_world(4)
    assert caught.value.hint == "nearest: 8192 or 16384 tokens"  # at no data-parallel size do 5 go in pairs


def test_a_trained_model_can_only_be_cut_into_other_stages() -> None:
    model = job().model
    assert staging_error(model, 4, "--pipeline") is None
    assert str(staging_error(model, 6, "--pipeline")) == ("--pipeline: 4 layers are too few for 6 stages (nearest: 4)")
    assert str(staging_error(model, 6, "--pipeline", among=[1, 2, 3, 6])) == (
        "--pipeline: 4 layers are too few for 6 stages (nearest: 3)"
    )


@pytest.mark.parametrize(
    ("was", "written", "expected"),
    [
        ("pipeline=dict(size=1, interleaved_overlap=True)", "pipeline=2", (2, False, "1F1B")),
        (
            "pipeline=dict(size=1, interleaved_overlap=True)",
            "pipeline=dict(size=2, interleaved_overlap=True)",
            (2, True, "1F1B"),
        ),
        (
            "pipeline=dict(size=1, interleaved_overlap=True)",
            'pipeline=dict(size=4, mode="zbh1")',
            (4, False, "ZBH1"),
        ),
    ],
)
def test_the_tutorials_job_with_a_pipeline(tmp_path: Path, was: str, written: str, expected: tuple) -> None:
    """In InternEvo's own words."""
    text = (CONFIGS / "train" / "7B_sft.py").read_text()
    assert was in text
    path = tmp_path / "7B_sft.py"
    path.write_text(text.replace(was, written))
    pipeline = load_config(path).parallel.pipeline
    assert (pipeline.size, pipeline.interleaved_overlap, pipeline.mode) == expected
    assert load_config(path).dp(8) == 8 // pipeline.size


def test_the_tutorials_job_interleaved(tmp_path: Path) -> None:
    text = (CONFIGS / "train" / "7B_sft.py").read_text()
    path = tmp_path / "7B_sft.py"
    path.write_text(text.replace("num_chunks=1", "num_chunks=2").replace("size=1, interleaved", "size=2, interleaved"))
    config = load_config(path)
    assert (config.model.num_chunks, config.parallel.pipeline.size) == (2, 2)
    config.check_world(8)
    assert not [said for said in config.settings_without_effect("cpu") if "pipeline" in said or "chunks" in said]
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["model.num_chunks=5"])
    # The file and the line are found by the key: of an override it is the override.
    assert str(caught.value).startswith("--set model.num_chunks: model.num_chunks: 32 layers do not divide into 5 ")
    path.write_text(path.read_text().replace("num_chunks=2", "num_chunks=5"))
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "num_chunks" in text)
    with pytest.raises(ConfigError, match=rf"7B_sft\.py:{line}: model\.num_chunks: 32 layers do not divide into 5 "):
        load_config(path)


def test_no_more_stages_are_proposed_than_there_are_layers() -> None:
    for chunks, layers, hint in ((1, 7, "pipeline.size 4"), (1, 8, "pipeline.size 4 or 8"), (2, 14, "pipeline.size 4")):
        with pytest.raises(ConfigError) as caught:
            job(stages(6, chunks=chunks, model={"num_layers": layers})).check_world(64)
        assert caught.value.hint == f"nearest: {hint}, or 60 or 66 ranks"


def test_modes_are_read_as_internevo_writes_them() -> None:
    for mode, chunks in (("1f1b", 2), ("zbh1", 1), ("zbv", 2)):
        assert job(stages(2, mode, chunks=chunks)) == job(stages(2, mode.upper(), chunks=chunks))


def test_settings_of_a_pipeline_without_effect() -> None:
    def named(changes: dict[str, Any]) -> list[str]:
        return job(changes).settings_without_effect("cuda")

    overlap = {"parallel": {"pipeline": {"interleaved_overlap": True}}}
    assert named(merge(stages(1, "ZBV", chunks=2), overlap)) == [
        "model.num_chunks (pipeline.size is 1)",
        "parallel.pipeline.interleaved_overlap (pipeline.size is 1)",
        "parallel.pipeline.mode (pipeline.size is 1)",
    ]
    assert named(stages(1)) == []
    assert named(merge(stages(1), overlap)) == ["parallel.pipeline.interleaved_overlap (pipeline.size is 1)"]
    assert named(stages(2, "ZBH1")) == []
    assert named(merge(stages(2), overlap)) == ["parallel.pipeline.interleaved_overlap (num_chunks is 1)"]
    assert named(merge(stages(2, "ZBH1"), overlap)) == ["parallel.pipeline.interleaved_overlap (num_chunks is 1)"]
    assert named(merge(stages(2, chunks=2), overlap)) == []
    assert named(merge(stages(2, "ZBV", chunks=2), overlap)) == []


def test_stages_are_no_part_of_what_is_trained() -> None:
    """Four ranks in two stages train what two ranks train."""
    alone: TrainConfig = job(stages(1))
    for changed in (stages(2), stages(2, "ZBH1"), stages(2, chunks=2), stages(2, "ZBV", chunks=2)):
        assert job(changed).identity(4) == alone.identity(2)
    tokens = {"micro_num": None, "global_batch_tokens": 2048 * 8}
    assert job(stages(2, chunks=2, data=tokens)).identity(4) == job(stages(1, data=tokens)).identity(1)

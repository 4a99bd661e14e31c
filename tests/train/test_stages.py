"""A run over the stages of a pipeline, from outside: its curve is that of one process, told once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from evo_core.parallel.pipeline.stages import Pipeline
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, job, run

SETTINGS: dict[str, Any] = {
    "model__num_layers": 5,
    "model__drop_rate": 0.1,
    "data__micro_num": 4,
    "data__global_batch_tokens": None,
    "data__rampup_batch_size": "1 1 2",
    "data__skip_batches": "3",
    "data__valid_every": 2,
    "ckpt__enable_save_ckpt": False,
}
"""One micro-batch at first, and one more every second step; the model is evaluated then too."""

MEASURED = ("loss", "acc", "tokens", "perplexity", "moe_loss", "grad_norm", "lr", "val")

CHUNKS = {"model__num_layers": 6, "model__num_chunks": 2}


def same(one: list[Mapping[str, Any]], many: list[Mapping[str, Any]]) -> None:
    """See that two curves in float64 are the same."""
    assert len(many) == len(one) == 8
    for expected, found in zip(one, many, strict=True):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            measured = key.split("/")[0] in (
                "loss",
                "acc",
                "tokens",
                "perplexity",
                "moe_loss",
                "grad_norm",
                "lr",
                "val",
            )
            if measured and value is not None:
                assert found[key] == pytest.approx(value, rel=1e-12), (expected["step"], key)
            elif key in ("step", "micro_num", "num_consumed_tokens", "num_samples_in_batch", "skip_batches"):
                assert found[key] == value, (expected["step"], key)


@pytest.mark.parametrize(
    ("ranks", "pipeline", "settings", "layers"),
    [
        pytest.param(2, {"size": 2}, {}, ["0-1", "2-4"], marks=pytest.mark.slow),
        (3, {"size": 3}, {}, ["0", "1-2", "3-4"]),
        pytest.param(2, {"size": 2}, CHUNKS, ["0,3", "1-2,4-5"], marks=pytest.mark.slow),
        (2, {"size": 2, "interleaved_overlap": True}, CHUNKS, ["0,3", "1-2,4-5"]),
        (2, {"size": 2, "mode": "ZBH1"}, {}, ["0-1", "2-4"]),
        (2, {"size": 2, "mode": "ZBV"}, CHUNKS, ["0,4-5", "1-2,3"]),
    ],
    ids=["1F1B", "three uneven", "interleaved", "interleaved, overlapped", "ZBH1", "ZBV"],
)
def test_the_curve_of_one_process(
    tmp_path: Path, ranks: int, pipeline: dict[str, Any], settings: dict[str, Any], layers: list[str]
) -> None:
    run(job(tmp_path, **SETTINGS | settings), tmp_path / "one")
    reading = {"data__use_shm": True, "data__shm_path": str(tmp_path / "shm")}
    cfg = job(tmp_path, parallel={"pipeline": pipeline, "zero1": {"size": -1}}, **SETTINGS | settings | reading)
    run_on_ranks(run, ranks, cfg, tmp_path / "many")
    one, many = curve(tmp_path / "one"), curve(tmp_path / "many")
    same(one, many)
    assert [record.get("micro_num") for record in many] == [1, 1, 2, None, 3, 3, 4, 4]
    assert [sum(key.startswith("val/") for key in record) for record in many] == [0, 9] * 4
    for record in many:
        if record["loss"] is not None:
            per_rank = record["tokens_per_second"] / ranks
            assert record["tgs (tokens/gpu/second)"] == pytest.approx(per_rank, rel=1e-2)
    said = (tmp_path / "many" / "train.log").read_text()
    assert said.count("evaluation after step=") == 4
    names, *rows = [line.split()[:6] for line in said.partition("ranks:\n")[2].splitlines()[: ranks + 1]]
    assert names == ["rank", "pp", "dp", "zero", "local", "layers"]
    assert [row[:5] for row in rows] == [[str(n), str(n), "0", "0", str(n)] for n in range(ranks)]
    assert [row[5] for row in rows] == layers


def test_valid_micro_num_is_what_stages_are_handed_at_once(tmp_path: Path) -> None:
    """It is no more than a way to do it: scores are those of one process."""
    scored = {"data__total_steps": 1, "data__valid_every": 1, "ckpt__enable_save_ckpt": False}
    run(job(tmp_path, data__valid_micro_num=2, **scored), tmp_path / "one")
    stages = {"parallel": {"pipeline": {"size": 2}}, **scored}

    def counted(number: int | None) -> list[int]:
        counts = []
        forward = Pipeline.forward

        def counting(self: Pipeline, count: int, *rest: Any) -> None:
            counts.append(count)
            forward(self, count, *rest)

        Pipeline.forward = counting  # type: ignore[method-assign, assignment]
        run(job(tmp_path, data__valid_micro_num=number, **stages), tmp_path / f"many-{number}")
        return counts

    def scores(name: str) -> dict[str, Any]:
        return {key: value for key, value in curve(tmp_path / name)[-1].items() if key.startswith("val/")}

    (as_they_need, of_two, of_one) = (run_on_ranks(counted, 2, number)[0] for number in (None, 2, 1))
    assert sum(as_they_need) == sum(of_two) == sum(of_one)
    assert max(as_they_need) > max(of_two) == 2 and set(of_one) == {1}
    assert len(scores("one")) == 9
    for name in ("many-None", "many-2", "many-1"):
        assert scores(name) == pytest.approx(scores("one"), rel=1e-12)

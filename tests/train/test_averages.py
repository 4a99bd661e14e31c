"""The averages of speed, against InternEvo's log and against their definitions."""

from __future__ import annotations

from pathlib import Path

import pytest

from evo_core.train.averages import SpeedAverages
from tests.train.jobs import curve, job, run

NAMES = ["last_tgs_1", "tgs_all", "tgs_avg", "tgs_SMA", "last_tgs_10", "last_tgs_50"]


def test_the_first_steps_of_an_original_log() -> None:
    averages = SpeedAverages()
    speeds = [338.62, 931.03]
    (_, second) = [averages.add(4096.0, 4096.0 / speed) for speed in speeds]
    assert list(second) == [f"tgs/{name}" for name in NAMES]
    assert list(second.values()) == [931.03, 496.62, pytest.approx(634.83, abs=0.006), 496.62, 0.0, 0.0]


def test_120_steps_are_averaged_as_the_names_say() -> None:
    averages, steps = SpeedAverages(), [(1000.0 + 7 * n, 0.5 + n % 11 / 10) for n in range(120)]

    def speed(of: list[tuple[float, float]]) -> float:
        return sum(tokens for tokens, _ in of) / sum(seconds for _, seconds in of)

    for done, (tokens, seconds) in enumerate(steps, 1):
        got = averages.add(tokens, seconds)
        past = steps[:done]
        blocks = {size: done // size * size for size in (10, 50)}
        assert got == {
            "tgs/last_tgs_1": pytest.approx(tokens / seconds, abs=0.01),
            "tgs/tgs_all": pytest.approx(speed(past), abs=0.01),
            "tgs/tgs_avg": pytest.approx(sum(t / s for t, s in past) / done, abs=0.01),
            "tgs/tgs_SMA": pytest.approx(speed(past[-50:]), abs=0.01),
        } | {
            f"tgs/last_tgs_{size}": pytest.approx(speed(past[end - size : end]), abs=0.01) if end else 0.0
            for size, end in blocks.items()
        }


def test_a_run_has_them_but_for_skipped_batches_and_begins_anew_on_resume(tmp_path: Path) -> None:
    changes = {"data__skip_batches": "1", "data__total_steps": 6}
    run(job(tmp_path, **changes), tmp_path / "first")
    first = curve(tmp_path / "first")
    named = [[name.removeprefix("tgs/") for name in record if name.startswith("tgs/")] for record in first]
    assert named == [NAMES, [], *[NAMES] * 4]
    for number, record in enumerate(first):
        past = [r["tgs/last_tgs_1"] for r in first[: number + 1] if "tgs/last_tgs_1" in r]
        if number != 1:
            assert record["tgs/last_tgs_1"] == record["tgs (tokens/gpu/second)"]
            assert record["tgs/tgs_avg"] == pytest.approx(sum(past) / len(past), abs=0.02)
            # All steps are as large: tokens over seconds are the harmonic mean.
            assert record["tgs/tgs_all"] == pytest.approx(len(past) / sum(1 / speed for speed in past), rel=1e-4)

    run(job(tmp_path, **changes | {"data__total_steps": 8, "lr_scheduler__total_steps": 8}), tmp_path / "second")
    resumed = curve(tmp_path / "second")[0]
    assert resumed["step"] == 6
    assert len({resumed[f"tgs/{name}"] for name in NAMES[:4]}) == 1

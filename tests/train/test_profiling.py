"""Steps that are profiled leave a trace and a table of memory, and compute what they always do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from evo_core.errors import ConfigError
from evo_core.train.command import main
from tests.ranks import run_on_ranks
from tests.train.jobs import job, losses, run, write_job

CHANGES: dict[str, Any] = {"ckpt__enable_save_ckpt": False, "data__total_steps": 8}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for name in ("traces", "memory") for path in folder.glob(f"{name}/*")}


def of(step: int, rank: int = 0) -> set[str]:
    return {f"traces/step-{step:05d}-rank-{rank:05d}.json.gz", f"memory/step-{step:05d}-rank-{rank:05d}.txt"}


def table(path: Path) -> dict[str, int]:
    rows = [line.rsplit(None, 3) for line in path.read_text().splitlines()[2:]]
    return {name.strip(): int(size.replace(",", "")) for name, size, *_ in rows}


def test_named_steps(tmp_path: Path) -> None:
    run(job(tmp_path, **CHANGES), tmp_path / "plain")
    run(job(tmp_path, monitor={"profile": {"steps": [2, 5, 6]}}, **CHANGES), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    assert files(tmp_path / "run") == of(2) | of(5) | of(6) and files(tmp_path / "plain") == set()
    with gzip.open(tmp_path / "run" / "traces" / "step-00005-rank-00000.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"ProfilerStep#5", "aten::mm"} <= names and "ProfilerStep#4" not in names


def test_the_table_counts_what_is_held(tmp_path: Path) -> None:
    """In float64 weights are their own master values; the moments are two, and as many counts of float32."""
    run(job(tmp_path, monitor={"profile": {"steps": [3]}}, **CHANGES), tmp_path / "run")
    said = table(tmp_path / "run" / "memory" / "step-00003-rank-00000.txt")
    assert said.pop("allocated in the step, at its peak") > 0
    weights = 28336 * 8
    held = {"parameters": weights, "buffers": 0, "gradients": weights, "master values": 0, "moments": 2 * weights + 8}
    assert said == held | {"together": sum(held.values())}


def _profiled(folder: Path) -> None:
    run(job(folder, monitor={"profile": {"steps": [3]}}, **CHANGES), folder / "run")


def test_the_first_of_ranks_that_do_alike_leaves_the_trace(tmp_path: Path) -> None:
    job(tmp_path)
    run_on_ranks(_profiled, 2, tmp_path)
    assert files(tmp_path / "run") == of(3) | {"memory/step-00003-rank-00001.txt"}


@pytest.mark.parametrize(("total", "step"), [(8, 5), (4, 3)])
def test_the_option_takes_the_sixth_step(tmp_path: Path, total: int, step: int) -> None:
    config = write_job(tmp_path, **CHANGES | {"data__total_steps": total})
    main(["--config", str(config), "--folder", str(tmp_path / "run"), "--profiling"])
    assert files(tmp_path / "run") == of(step)


def test_a_step_that_is_not_trained_on_is_named(tmp_path: Path) -> None:
    monitor = {"profile": {"steps": [2, 4]}}
    run(job(tmp_path, monitor=monitor, data__skip_batches="2", **CHANGES), tmp_path / "run")
    assert files(tmp_path / "run") == of(4)
    assert "there is no profile of step 2: data.skip_batches names it" in (tmp_path / "run" / "train.log").read_text()


def test_a_step_behind_the_last(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="8"):
        job(tmp_path, monitor={"profile": {"steps": [8]}}, **CHANGES)


def test_a_folder_that_cannot_be_written_costs_the_profile_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "traces").write_text("a file")
    run(job(tmp_path, monitor={"profile": {"steps": [3]}}, **CHANGES), tmp_path / "run")
    assert len(losses(tmp_path / "run")) == 8
    assert "profiles are lost" in (tmp_path / "run" / "train.log").read_text()

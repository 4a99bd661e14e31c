"""The job folder: progress now and then, errors once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evo_core import job
from evo_core.cause import cause_of
from evo_core.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVO_JOB_FOLDER", str(tmp_path))
    for name in ("RANK", "SLURM_PROCID", "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(job, "_last_report", float("-inf"))
    return tmp_path


def progress(folder: Path) -> dict:
    return json.loads((folder / "progress.json").read_text())


def test_progress_is_written_at_most_twice_a_second_and_at_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 50.0
    monkeypatch.setattr(job.time, "monotonic", lambda: now)
    seen = []
    for done in range(1, 11):
        job.report_progress(done, 10, "steps", loss=float("nan") if done == 1 else 0.5, eta_seconds=None)
        seen.append(progress(folder)["done"])
        now += 0.2
    assert seen == [1, 1, 1, 4, 4, 4, 7, 7, 7, 10]
    assert progress(folder)["loss"] == 0.5
    assert progress(folder)["eta_seconds"] is None


def test_what_is_not_finite_is_null(folder: Path) -> None:
    job.report_progress(1, 2, "steps", loss=float("inf"))
    assert progress(folder)["loss"] is None


def test_only_rank_0_reports_and_only_where_a_folder_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    job.report_progress(1, 1, "steps")
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("EVO_JOB_FOLDER")
    job.report_progress(1, 1, "steps")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status", "user_error"),
    [(ConfigError("no", key="a.b"), 2, True), (ValueError("no"), 1, False)],
    ids=["a user's mistake", "a crash"],
)
def test_errors(
    folder: Path, error: Exception, status: int, user_error: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end, job.command("evo test"):
        raise error
    assert end.value.code == status
    left = json.loads((folder / "error.json").read_text())
    assert (left["user_error"], left["message"], left["rank"]) == (user_error, str(error), 0)
    assert ("Traceback" in capsys.readouterr().err) == (not user_error)
    with pytest.raises(SystemExit), job.command("evo test"):  # a slower rank of the same attempt
        raise RuntimeError("connection closed by peer")
    assert json.loads((folder / "error.json").read_text()) == left


def test_what_a_rank_says_wins_over_what_its_peers_heard(folder: Path) -> None:
    def says(error: Exception) -> str:
        with pytest.raises(SystemExit), job.command("evo test"):
            raise error
        return json.loads((folder / "error.json").read_text())["cause"]

    closed = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")
    assert says(closed) == "communication"
    assert says(MemoryError("no more")) == "out_of_memory"
    assert says(closed) == "out_of_memory"
    assert says(ValueError("no")) == "out_of_memory", "the first that says more stays"


class DistError(RuntimeError):
    """As torch names it."""


class Stuck(RuntimeError):
    """As the watchdog names it."""


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (DistError("x"), "communication"),
        (RuntimeError("NCCL error: remote process exited"), "communication"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "out_of_memory"),
        (DistError("Cuda failure 'out of memory'"), "out_of_memory"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "node"),
        (Stuck("at all_reduce of gloo/transport, out of memory"), "no_progress"),
        (ValueError("out of memory"), "crash"),
        (OSError("Connection refused"), "crash"),
        (ConfigError("out of memory"), "user"),
    ],
)
def test_causes(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause


def test_what_went_before_is_the_cause() -> None:
    with pytest.raises(DistError) as raised:
        try:
            raise MemoryError
        finally:
            raise DistError("while it ended")
    assert cause_of(raised.value) == "out_of_memory"


def test_ctrl_c(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, job.command("evo test"):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == "evo test: interrupted\n"


def test_without_a_folder_errors_are_only_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVO_JOB_FOLDER")
    with pytest.raises(SystemExit), job.command("evo test"):
        raise ConfigError("no")
    assert list(folder.iterdir()) == []

"""The clients of Slurm, with stand-ins on PATH that answer as the real ones were seen to."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.launch.commands import Seen, SlurmCommands, SlurmRefused, SlurmSilent

Client = Callable[[str, str], None]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Write a client: its name and its shell text."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(name: str, text: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    return write


def test_submit_hands_on_the_environment_but_not_our_own_place(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    monkeypatch.setenv("SLURM_CONF", "/some/slurm.conf")
    client("sbatch", f'env > {tmp_path}/env; echo "$@" > {tmp_path}/args; echo "17;cluster"')
    assert SlurmCommands().submit(["--nodes=2"], tmp_path / "job.sh", {"TOKEN": "t"}) == "17"
    environment = (tmp_path / "env").read_text().splitlines()
    assert "TOKEN=t" in environment and "SLURM_CONF=/some/slurm.conf" in environment
    assert not any(line.startswith("SLURM_JOB_ID") for line in environment)
    assert (tmp_path / "args").read_text().strip() == f"--parsable --nodes=2 {tmp_path}/job.sh"


def test_a_wrapper_of_sbatch_may_say_more_than_the_id(client: Client, tmp_path: Path) -> None:
    client("sbatch", "echo 'Welcome to the cluster, 12 jobs wait'; echo '17;cluster'; echo")
    assert SlurmCommands().submit([], tmp_path / "job.sh", {}) == "17"
    client("sbatch", "echo 'Submitted, I guess'")
    with pytest.raises(SlurmRefused, match="instead of a job id"):
        SlurmCommands().submit([], tmp_path / "job.sh", {})


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
            SlurmSilent,
        ),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", SlurmSilent),
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", SlurmRefused),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", SlurmRefused),
    ],
)
def test_no_answer_is_not_a_no(client: Client, tmp_path: Path, said: str, kind: type[Exception]) -> None:
    client("sbatch", f"echo 'sbatch: error: Batch job submission failed: {said}' >&2; exit 1")
    with pytest.raises(kind, match="Batch job submission failed"):
        SlurmCommands().submit([], tmp_path / "job.sh", {})


def test_a_client_that_hangs_is_no_answer(client: Client) -> None:
    client("squeue", "sleep 30")
    started = time.monotonic()
    with pytest.raises(SlurmSilent, match="no answer in 0 s"):
        SlurmCommands(timeout=0.2).look("1")
    assert time.monotonic() - started < 10


def test_look(client: Client) -> None:
    client("squeue", "echo '12|RUNNING|None|node[1-2]'; echo '13|PENDING|Resources|'")
    assert SlurmCommands().look("12") == Seen("12", "RUNNING", "None", "node[1-2]")
    assert SlurmCommands().look("13") == Seen("13", "PENDING", "Resources", "")
    assert SlurmCommands().look("14") is None
    client("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert SlurmCommands().look("12") is None


def test_accounting_is_asked_with_a_start_and_read_with_its_tails(client: Client, tmp_path: Path) -> None:
    client("sacct", f'echo "$@" > {tmp_path}/args; echo "2|CANCELLED by 0|0:0|node1"; echo "1|FAILED|3:0|node[1-2]"')
    client("squeue", "exit 0")
    assert SlurmCommands().account("2", 1.7e9) == Seen("2", "CANCELLED", "exit code 0:0", "node1")
    assert "-S 2023-11-1" in (tmp_path / "args").read_text()
    assert SlurmCommands().find("evo-x", 1.7e9) == "2"


def test_without_accounting_nothing_follows(client: Client) -> None:
    client("squeue", "exit 0")
    client("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert SlurmCommands().account("1", 0) is None
    assert SlurmCommands().find("evo-x", 0) is None


def test_cancelling_what_has_ended_is_no_error(client: Client) -> None:
    client(
        "scancel",
        "echo 'scancel: error: Kill job error on job id 1: Job/step already completing or completed' >&2; exit 1",
    )
    SlurmCommands().cancel("1")
    client("scancel", "echo 'scancel: error: Kill job error on job id 1: Access/permission denied' >&2; exit 1")
    with pytest.raises(SlurmRefused, match="denied"):
        SlurmCommands().cancel("1")

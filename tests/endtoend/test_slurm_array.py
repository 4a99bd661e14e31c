"""Tokenizing by an array of a real Slurm cluster: the bytes of a local run, and nothing done twice."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.endtoend.conftest import Evo
from tests.endtoend.test_slurm import SlurmEvo, evo, wait_until
from tests.slurm_cluster import SlurmCluster

__all__ = ["evo"]
pytestmark = pytest.mark.slurm

TOKENIZER = Path(__file__).parents[1] / "tasks" / "tokenizer.json"
WORDS = "the quick brown fox jumps over the lazy dog and 却说 玄德 goes on "


def pipeline(folder: Path, *, files: int, kilobytes: int, runtime: str) -> str:
    """A pipeline that tokenizes so many files of up to that size."""
    corpus = folder / "corpus" / "en"
    if not corpus.exists():
        corpus.mkdir(parents=True)
        for number in range(files):
            repeats = 1 + (number * 37 % (kilobytes * 14))
            (corpus / f"{number:03d}.txt").write_text(f"document {number} of {files}\n" + f"{WORDS * 5}\n" * repeats)
    file = folder / "tokens.yaml"
    file.write_text(
        f"pipeline: tokens\nsteps:\n  raw: {{uses: source.files, params: {{root: {folder / 'corpus'}}}}}\n"
        f"  tokens:\n    uses: data.tokenize\n    needs: {{raw: raw}}\n    params: {{tokenizer: {TOKENIZER}}}\n"
        f"    runtime: {{{runtime}}}\n"
    )
    return str(file)


def objects(evo: Evo) -> dict[str, str]:
    """Every file of the store's objects, hidden ones too, with the digest of its content."""
    root = evo.root / "objects"
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def index(evo: Evo) -> bytes:
    return (evo.artifact("tokens") / "index.json").read_bytes()


def logs(evo: Evo) -> str:
    return "".join(path.read_text() for path in sorted(evo.root.glob("state/*/array/*/log-*.txt")))


def tokenized(evo: Evo) -> Counter[str]:
    """How often each file was tokenized to its end."""
    return Counter(re.findall(r"^tokenized (\S+)", logs(evo), re.MULTILINE))


def assert_each_once(evo: Evo, times: Counter[str], files: int, ended: int) -> None:
    """Every file is there and none was tokenized twice; a task that was ended may have had no time to say its last."""
    assert sum(path.endswith("object.json") for path in objects(evo)) == files
    assert set(times.values()) == {1} and files - ended <= len(times) <= files


def processes_of_task(evo: Evo, task: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURM_ARRAY_TASK_ID={task}".encode() in variables and any(
            str(evo.root).encode() in variable for variable in variables if variable.startswith(b"EVO_JOB_FOLDER")
        ):
            found.append(int(path.parent.name))
    return found


def test_two_hundred_files_by_four_tasks_are_those_of_a_local_run(evo: SlurmEvo, tmp_path: Path) -> None:
    array = pipeline(tmp_path, files=200, kilobytes=2, runtime="cluster: test_slurm.yaml, array: 4")
    printed = evo("run", array, "--no-server")
    assert "an array of 4" in printed
    assert sorted(tokenized(evo).values()) == [1] * 200
    shares = [
        len(re.findall("^tokenized", path.read_text(), re.M)) for path in evo.root.glob("state/*/array/*/log-*.txt")
    ]
    assert len(shares) == 4 and min(shares) > 30
    assert evo("logs", "tokens").count("tokenized ") == 200
    there, named = objects(evo), index(evo)
    local = Evo(tmp_path)
    local.root = tmp_path / "local_runs"
    local("run", pipeline(tmp_path, files=200, kilobytes=2, runtime="workers: 2"), "--no-server")
    assert objects(local) == there and index(local) == named
    again = evo.plan(array)
    assert again["tokens"]["action"] == "reuse"


@pytest.mark.faults
@pytest.mark.parametrize("how", ["killed", pytest.param("requeued", marks=pytest.mark.slow)])
def test_a_task_that_ends_in_the_middle_repeats_only_what_it_had_not_finished(
    evo: SlurmEvo, slurm: SlurmCluster, tmp_path: Path, how: str
) -> None:
    array = pipeline(tmp_path, files=24, kilobytes=900, runtime="cluster: test_slurm.yaml, array: 2")
    run = evo.start("run", array, "--no-server")

    def of_first() -> Counter[str]:
        log = next(iter(evo.root.glob("state/*/array/0/log-*.txt")), None)
        return Counter(re.findall(r"^tokenized (\S+)", log.read_text() if log else "", re.MULTILINE))

    wait_until(lambda: len(of_first()) >= 2)
    before = of_first()
    if how == "killed":
        for process in processes_of_task(evo, 0):
            if "tokenize_array" in command_line(process) and "srun" not in command_line(process):
                os.kill(process, signal.SIGKILL)
    else:
        job = slurm.client("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i").split()
        slurm.client("scontrol", "requeue", next(name for name in job if name.endswith("_0")))
    printed, _ = run.communicate(timeout=200)
    assert run.returncode == 0, printed
    said = [int(number) for number in re.findall(r"files to tokenize, (\d+) done before", logs(evo))]
    assert len(said) == 3 and max(said) >= len(before)
    times = tokenized(evo)
    assert_each_once(evo, times, files=24, ended=1)
    names = {Path(path).name for path in objects(evo) if not path.endswith(".running")}  # the sign that somebody waits
    assert names == {"tokens.bin", "tokens.bin.meta", "object.json"}


@pytest.mark.faults
@pytest.mark.slow
def test_a_worker_that_is_killed_is_no_mistake_of_the_users(evo: SlurmEvo, tmp_path: Path) -> None:
    array = pipeline(tmp_path, files=24, kilobytes=900, runtime="cluster: test_slurm.yaml, array: 1, cpus: 2")
    run = evo.start("run", array, "--no-server")
    wait_until(lambda: tokenized(evo))
    workers = [process for process in processes_of_task(evo, 0) if "spawn_main" in command_line(process)]
    os.kill(workers[-1], signal.SIGKILL)
    printed, _ = run.communicate(timeout=200)
    assert run.returncode == 0, printed
    assert "restart 1 of 3" in logs(evo) and sorted(tokenized(evo).values()) == [1] * 24


def command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.mark.faults
def test_a_dead_run_leaves_its_array_and_two_more_attach(evo: SlurmEvo, tmp_path: Path) -> None:
    array = pipeline(tmp_path, files=24, kilobytes=600, runtime="cluster: test_slurm.yaml, array: 2")
    first = evo.start("run", array, "--no-server")
    wait_until(lambda: tokenized(evo))
    first.kill()
    first.wait()
    assert evo.plan(array)["tokens"]["action"] == "attach"
    runs = [evo.start("run", array, "--no-server") for _ in range(2)]
    for run in runs:
        printed, _ = run.communicate(timeout=200)
        assert run.returncode == 0, printed
    assert sorted(tokenized(evo).values()) == [1] * 24
    assert evo.jobs() == []


def test_cancelling_ends_every_task_and_the_next_run_does_the_rest(
    evo: SlurmEvo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.launch import launcher_for
    from tasks.launch.launcher import LaunchRuntime

    array = pipeline(tmp_path, files=24, kilobytes=900, runtime="cluster: test_slurm.yaml, array: 2")
    run = evo.start("run", array, "--no-server")
    wait_until(lambda: tokenized(evo))
    state = next(evo.root.glob("state/*/job.json")).parent
    monkeypatch.chdir(tmp_path)
    ended = launcher_for(LaunchRuntime(cluster="test_slurm.yaml")).cancel(state)
    assert ended is not None and "an array of 2" in ended and evo.jobs() == []
    before = tokenized(evo)
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 1 and "was cancelled" in printed, printed
    evo("run", array, "--no-server")
    times = before + tokenized(evo)
    assert_each_once(evo, times, files=24, ended=2)


def test_a_wrong_record_ends_the_step_with_its_file_and_line_and_the_other_tasks(evo: SlurmEvo, tmp_path: Path) -> None:
    array = pipeline(tmp_path, files=12, kilobytes=900, runtime="cluster: test_slurm.yaml, array: 2")
    (tmp_path / "corpus" / "en" / "bad.jsonl").write_text('{"text": "good"}\n' * 3 + '{"txet": "bad"}\n')
    printed = evo("run", array, "--no-server", status=1)
    assert re.search(r"bad\.jsonl:4: .*text", printed.splitlines()[-1])
    assert evo.jobs() == []


@pytest.mark.slow
def test_a_damaged_object_is_made_anew_by_force(evo: SlurmEvo, tmp_path: Path) -> None:
    array = pipeline(tmp_path, files=6, kilobytes=2, runtime="cluster: test_slurm.yaml, array: 2")
    evo("run", array, "--no-server")
    good = objects(evo)
    first, second = sorted(evo.root.glob("objects/**/tokens.bin"))[:2]
    first.write_bytes(first.read_bytes()[:-3])
    second.unlink()
    evo("run", array, "--no-server", "--force", "tokens")
    assert objects(evo) == good and len(tokenized(evo)) == 2


@pytest.mark.slow
def test_here_nothing_is_begun_beside_an_array_that_lives(evo: SlurmEvo, tmp_path: Path) -> None:
    cluster, go = tmp_path / "test_slurm.yaml", tmp_path / "go"
    cluster.write_text(cluster.read_text() + f"setup: ['while [ ! -e {go} ]; do sleep 0.1; done']\n")
    array = pipeline(tmp_path, files=6, kilobytes=2, runtime="cluster: test_slurm.yaml, array: 2")
    run = evo.start("run", array, "--no-server")
    wait_until(lambda: "RUNNING" in "".join(evo.jobs()))
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    here = pipeline(tmp_path, files=6, kilobytes=2, runtime="workers: 2")
    assert "makes this artifact already" in evo("run", here, "--no-server", status=1)
    go.touch()
    evo("run", pipeline(tmp_path, files=6, kilobytes=2, runtime="cluster: test_slurm.yaml, array: 2"), "--no-server")
    assert sorted(tokenized(evo).values()) == [1] * 6


@pytest.mark.slow
def test_an_array_has_no_more_tasks_than_the_cluster_allows(evo: SlurmEvo, tmp_path: Path) -> None:
    array = pipeline(tmp_path, files=12, kilobytes=2, runtime="cluster: test_slurm.yaml, array: 9, cpus: 2, time: 10m")
    printed = evo("run", array, "--no-server")
    assert "an array may have 5 tasks here (MaxArraySize)" in printed and "an array of 5" in printed
    assert sorted(tokenized(evo).values()) == [1] * 12
    few = pipeline(tmp_path / "few", files=2, kilobytes=3, runtime="cluster: test_slurm.yaml, array: 4")
    assert "an array of 2" in evo("run", few, "--no-server")


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ("array: 4", r"runtime: .*array is for a Slurm cluster"),
        ("cluster: local, cpus: 4", r"cpus is for a Slurm cluster"),
        ("cluster: slurm, array: 0", r"runtime\.array: .*greater than or equal to 1"),
        ("cluster: slurm, workers: 2", r"workers is for this machine"),
        ("cluster: slurm, dask: local", r"dask and cluster are two ways"),
        ("cluster: slurm, time: '5'", r"no wall time"),
        ("cluster: nowhere, array: 2", r"there is no cluster 'nowhere'"),
        ("cluster: slurm, max_restarts: {nodes: 2}", r"no cause; did you mean"),
    ],
)
def test_what_does_not_go_together_is_said_when_planned(tmp_path: Path, runtime: str, message: str) -> None:
    from evo_core.errors import ConfigError
    from flows.pipeline.plan import make_plan
    from flows.pipeline.schema import load_pipeline
    from tasks.store import open_store

    file = pipeline(tmp_path, files=1, kilobytes=1, runtime=runtime)
    with pytest.raises(ConfigError, match=message) as caught:
        make_plan(load_pipeline(file), open_store(tmp_path / "store"))
    assert "tokens.yaml:8" in str(caught.value)

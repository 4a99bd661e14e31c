"""Why a try failed, and how often it is repeated: found out in the same way here and by the batch script."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.launch.causes import Cause, find_cause
from tasks.launch.cluster import LocalCluster
from tasks.launch.launcher import JobFailed, LaunchRuntime
from tasks.launch.left_out import LEFT_OUT, leave_out, read_left_out, without
from tasks.launch.local import LocalLauncher
from tasks.launch.restarts import Restarts, budgets
from tasks.launch.script_causes import causes_part
from tests.tasks.launch.runs import Run, make_job

LOCAL = LocalLauncher(LocalCluster())
ECHO = {"cause": "communication", "rank": 0, "host": "node1"}
TORCHRUN = "E1127 api.py:986] failed (exitcode: -9) local_rank: 1 (pid: 7) of binary: python"

LATER = "srun: Job step aborted: Waiting up to 32 seconds\nsrun: error: node1: task 1: Killed"
OOM = "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0."
LAUNCH = "srun: error: Task launch for StepId=4.1 failed on node node2: Communication connection failure"
RANK_3 = {"rank": 3, "host": "node2"}

TABLE: list[tuple[str, dict[str, Any] | None, int, str, Cause]] = [
    ("said by a rank", {"cause": "out_of_memory", **RANK_3}, 1, "", Cause("out_of_memory", "rank 3 (node2)")),
    ("communication", ECHO, 1, "", Cause("communication", "rank 0 (node1)")),
    ("a watchdog's", {"cause": "no_progress", **RANK_3}, 124, "", Cause("no_progress", "rank 3 (node2)")),
    ("a watchdog's status", None, 124, "", Cause("no_progress")),
    ("a crash", {"type": "ValueError", **RANK_3}, 1, "", Cause("crash", "rank 3 (node2)")),
    ("nothing is known", None, 1, "", Cause("crash")),
    ("the echo of a killed rank", ECHO, 1, TORCHRUN, Cause("crash")),
    ("ranks that were ended for another's failure", ECHO, 1, LATER, Cause("communication", "rank 0 (node1)")),
    ("Slurm's control groups", ECHO, 137, OOM, Cause("out_of_memory")),
    ("a node that is gone", ECHO, 1, "srun: error: Node failure on node2", Cause("node", "node2")),
    ("a node that takes no task", None, 1, LAUNCH, Cause("node", "node2")),
]


@pytest.fixture
def left(state: Path, request: pytest.FixtureRequest) -> tuple[Path, int, str]:
    """What a try left: its error and what it printed."""
    error, status, printed = request.param
    if error is not None:
        (state / "error.json").write_text(json.dumps({"message": 'a "cause": "node", of words', **error}))
    (state / "log.txt").write_text(f"of the try before: Node failure on node9\n{printed}\n")
    return state, status, printed


def by_script(state: Path, status: int) -> Cause:
    settings = f"state={state} log={state}/log.txt log_before=41 code={status} attempt=1 SLURM_JOB_NODELIST=node1\n"
    tools = "sinfo() { :; }; scontrol() { :; }\n"
    text = f'{settings}{tools}{causes_part(budgets(3))}\nfind_cause; printf "%s|%s" "$cause" "$where"'
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=20, check=True)
    assert not done.stderr, done.stderr
    return Cause(*done.stdout.split("|"))


@pytest.mark.parametrize(
    ("left", "cause"), [(row[1:4], row[4]) for row in TABLE], ids=[row[0] for row in TABLE], indirect=["left"]
)
def test_the_true_cause_wins_over_its_echo(left: tuple[Path, int, str], cause: Cause) -> None:
    state, status, printed = left
    here = find_cause(state, status, printed)
    assert here.name == cause.name and here.where in (cause.where, "")
    assert by_script(state, status) == cause


def test_the_kernels_count_tells_why_a_process_was_killed(state: Path) -> None:
    assert find_cause(state, 137, "", killed_for_memory=True) == Cause("out_of_memory")
    assert find_cause(state, 137, "") == Cause("crash")
    assert find_cause(state, 1, "", killed_for_memory=True) == Cause("crash"), "another process of this machine was"


def test_each_cause_has_a_budget_of_its_own() -> None:
    restarts = Restarts({"out_of_memory": 1})
    memory, node = Cause("out_of_memory"), Cause("node")
    assert restarts.another(memory, progressed=True) and restarts.budget(memory) == "restart 1 of 1"
    assert not restarts.another(memory, progressed=True)
    assert all(restarts.another(node, progressed=False) for _ in range(3)), "what fails there is no fault of the job's"
    assert not restarts.another(node, progressed=True)


@pytest.mark.parametrize("given", [-1, True, "3", {"node": -1}, {"nodes": 1}, {"node": {"a": 1}}])
def test_budgets_that_are_refused(given: object) -> None:
    with pytest.raises(ValidationError) as error:
        LaunchRuntime.model_validate({"max_restarts": given})
    assert len(error.value.errors()) == 1 and "out_of_memory" in str(error.value)


def test_a_local_job_says_why_and_counts_by_cause(state: Path) -> None:
    run = Run(LOCAL, make_job(state, "progress:1", "cause:out_of_memory", max_restarts={"out_of_memory": 1}))
    error = run.end()
    told = "out of memory on rank 0 (here): RuntimeError: for out_of_memory"
    assert isinstance(error, JobFailed) and error.message == f"{told} (tried 2 times)"
    assert f"[evo] {told}; restart 1 of 1" in run.lines


def test_a_rank_that_was_killed_is_no_lost_communication(state: Path) -> None:
    """As torchrun itself says it: the others hear of it through their connections, and say so first."""
    actions = ("of-rank:0:echo", "sleep:0.5", "of-rank:1:killed", "sleep:9")
    job = make_job(state, *actions, ranks_per_node=2, max_restarts=0)
    error = Run(LOCAL, job).end()
    assert isinstance(error, JobFailed) and not error.message.startswith("lost communication"), error.message
    assert '"cause": "communication"' in (state / "error.json").read_text()


def test_a_mistake_that_reached_one_rank_only_is_not_repeated(state: Path) -> None:
    """The others lose it and say so; torchrun then ends with status 1."""
    run = Run(LOCAL, make_job(state, "progress:1", "user-error:no such file", ranks_per_node=2, max_restarts=3))
    error = run.end()
    assert isinstance(error, JobFailed) and error.user_error and not [line for line in run.lines if "restart" in line]


def test_nodes_are_left_out_once_and_only_where_enough_remain(state: Path) -> None:
    assert leave_out(state, ["n2"], "node failure of job 1") == ["n2"]
    assert leave_out(state, ["n2", "n3"], "node failure of job 2") == ["n3"]
    assert read_left_out(state) == {"n2": "node failure of job 1", "n3": "node failure of job 2"}
    assert (state / LEFT_OUT).read_text().count("\n") == 2
    known = ["n1", "n2", "n3", "n4"]
    assert without(known, ["n2", "n3", "removed"], 2)[0] == ["n2", "n3"]
    out, said = without(known, ["n2", "n3"], 3)
    assert out == [] and "the job needs 3 nodes, and 2 would remain" in said

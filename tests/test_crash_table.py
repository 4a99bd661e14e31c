"""What may die, what the next run does then, and the tests that show it. The table cannot name a test that is gone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ENGINE = "flows/pipeline/test_engine.py::test_killed_anywhere_the_next_run_finishes_with_the_same_keys"
SLURM = "tasks/launch/test_slurm.py"
ACCOUNTING = "tasks/launch/test_accounting.py"

TABLE: dict[str, tuple[str, ...]] = {
    "after the plan: it is made again": (
        f"{ENGINE}[before-_claim_and_make]",
    ),
    "after the claim: it is taken over": (
        f"{ENGINE}[before-_attempt]",
        "flows/pipeline/test_engine.py::test_a_run_takes_over_from_one_that_died",
        "tasks/store/test_claim.py::test_a_dead_process_of_this_machine_is_seen_at_once",
    ),
    "between the intent and the answer of sbatch: the job is found by its name, else submitted": (
        f"{SLURM}::test_killed_around_sbatch_gives_one_job[before]",
        f"{SLURM}::test_killed_around_sbatch_gives_one_job[after]",
        f"{ACCOUNTING}::test_a_job_without_an_id_is_found_after_it_was_forgotten",
    ),
    "the job waits, the run dies: the next one follows it": (
        f"{SLURM}::test_killed_while_the_job_waits",
    ),
    "the job runs, the run or its worker dies: the next one follows it": (
        f"{SLURM}::test_killed_while_the_job_runs",
        "endtoend/test_slurm.py::test_a_second_run_attaches_and_a_dead_one_leaves_its_job_alive",
        "endtoend/test_slurm.py::test_a_step_renamed_between_kills_keeps_its_one_job",
        "flows/orchestration/test_slurm_jobs.py::"
        "test_a_job_survives_sigterm_of_its_run_and_cancelling_one_that_attached",
    ),
    "a node dies in training: on other nodes, from the newest checkpoint": (
        "tasks/launch/test_lost_node.py::test_the_job_goes_on_elsewhere_and_the_node_is_left_out",
        "endtoend/test_lost_node.py::test_training_goes_on_on_other_nodes[torchrun]",
        "endtoend/test_lost_node.py::test_training_goes_on_on_other_nodes[srun]",
    ),
    "a rank dies or hangs in training: again, as often as its cause allows": (
        f"{SLURM}::test_a_crash_is_tried_again_and_a_users_mistake_is_not",
        f"{ACCOUNTING}::test_more_memory_than_was_asked_for_is_the_cause",
        "tasks/launch/test_causes.py::test_a_local_job_says_why_and_counts_by_cause",
        "tasks/launch/test_causes.py::test_a_rank_that_was_killed_is_no_lost_communication",
        "endtoend/test_stuck.py::test_under_slurm[torchrun]",
    ),
    "wall time or pre-emption: the job saves, waits and goes on": (
        f"{SLURM}::test_wall_time_saves_and_requeues[1]",
        f"{SLURM}::test_preemption_requeues",
    ),
    "data written, before the manifest: it is made again": (
        f"{ENGINE}[before-seal]",
    ),
    "the attempt is sealed, before the commit: it is committed": (
        f"{ENGINE}[before-commit]",
    ),
    "after the manifest, before the state: a hit": (
        f"{ENGINE}[after-commit]",
        f"{ENGINE}[before-_forget_job]",
    ),
    "after the commit, before the ref moves: it is moved": (
        f"{ENGINE}[before-publish]",
    ),
    "Prefect's server is down: said at once, and the store goes on without it": (
        "flows/orchestration/test_server.py::test_a_server_that_was_set_but_is_silent_is_the_users_to_mend",
        "flows/orchestration/test_server.py::"
        "test_a_killed_run_takes_its_server_with_it_and_the_next_one_reports_it_dead",
        "flows/pipeline/test_kill_series.py::test_a_series_of_kills_ends_complete[without a server]",
    ),
    "Slurm's controller is down: asked again": (
        f"{SLURM}::test_a_silent_controller_is_no_failure",
    ),
    "slurmdbd is down: the job's own word and the controller's are enough": (
        f"{ACCOUNTING}::test_slurmdbd_is_away",
        f"{ACCOUNTING}::test_slurmdbd_is_away_for_minutes",
        f"{ACCOUNTING}::test_the_end_of_a_job_that_the_controller_has_forgotten",
    ),
    "two runs at once: one job, both end well": (
        f"{SLURM}::test_two_runs_at_once_submit_one_job",
        "flows/pipeline/test_engine.py::test_two_runs_at_once_make_each_artifact_once",
    ),
    "cancelled: the job ends": (
        f"{SLURM}::test_cancel_ends_the_job",
        "flows/orchestration/test_slurm_jobs.py::test_cancelling_a_run_ends_the_job_that_it_started",
    ),
}  # fmt: skip


NAMED = {f"tests/{test}" for tests in TABLE.values() for test in tests}


def test_every_test_of_the_table_is_written() -> None:
    written = set()
    for file in {test.partition("::")[0] for test in NAMED}:
        body = ast.parse((ROOT / file).read_text()).body
        written |= {f"{file}::{item.name}" for item in body if isinstance(item, ast.FunctionDef)}
    assert {test.partition("[")[0] for test in NAMED} - written == set()


@pytest.mark.slow
def test_every_test_of_the_table_is_collected() -> None:
    """With the cases that it names."""
    files = sorted({test.partition("::")[0] for test in NAMED})
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "--collect-only", "-q", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert NAMED - set(done.stdout.splitlines()) == set()

"""automations.yaml on a real server: applied as often as one likes, a failure is told, a dead run gets its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.orchestration.conftest import (
    REPOSITORY,
    Api,
    evo,
    is_over,
    kill_with_its_runs,
    settled,
    start,
    submit,
)
from tests.flows.orchestration.small import Small
from tests.monitor.receiver import Receiver, receiving

pytestmark = pytest.mark.ui

FILE = REPOSITORY / "automations.yaml"


@pytest.fixture
def automations(api: Api) -> Iterator[Callable[[], dict[str, Any]]]:
    """Those the server has, by name; all are removed afterwards."""

    def found() -> dict[str, Any]:
        listed = api.ask("automations/filter")
        assert len({each["name"] for each in listed}) == len(listed)
        return {each["name"]: each for each in listed}

    yield found
    for each in found().values():
        api.delete(f"automations/{each['id']}")


def test_a_failure_is_told_by_the_server_with_its_step_and_cause(
    api: Api, environment: dict[str, str], run_here: Any, automations: Any, small: Small
) -> None:
    with receiving() as hook:
        told = environment | {"EVO_NOTIFY_URL": hook.url}
        first = evo("automate", str(FILE), environment=told)
        assert first.stdout.splitlines() == ["evo-run-failed: made", "evo-run-died: made"], first.stderr
        ids = {name: each["id"] for name, each in automations().items()}
        again = evo("automate", str(FILE), environment=told)
        assert again.stdout.splitlines() == ["evo-run-failed: replaced", "evo-run-died: replaced"]
        assert {name: each["id"] for name, each in automations().items()} == ids
        assert Receiver.SECRET not in first.stdout + again.stdout + str(automations())
        run = run_here(small, "vars.fail=true")
        messages = settled(lambda: [one for one in hook.messages if one["flow_run_id"] == run["id"]], bool)
    assert len(messages) == 1  # a busy server may still be telling of an earlier test's run
    assert messages[0]["text"].startswith(f"{run['name']} Failed: ") and "step model: " in messages[0]["text"]


def test_without_an_address_the_other_automations_are_applied(environment: dict[str, str], automations: Any) -> None:
    done = evo("automate", str(FILE), environment=environment)
    assert done.stdout.splitlines() == ["evo-run-failed: left out: the file names no webhook", "evo-run-died: made"]
    assert list(automations()) == ["evo-run-died"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("automation: []\n", "automations"),
        ("automations:\n- name: x\n  trigger: {type: evnt}\n  actions: []\n", "wrong.yaml:2: automations.0: trigger"),
    ],
)
def test_a_wrong_file_is_named(environment: dict[str, str], tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    done = evo("automate", str(tmp_path / "wrong.yaml"), environment=environment)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_a_server_that_is_not_there_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    away = environment | {"PREFECT_API_URL": "http://127.0.0.1:1/api"}
    done = evo("automate", str(FILE), environment=away)
    assert done.returncode == 2 and "127.0.0.1:1" in done.stderr
    none = {name: value for name, value in environment.items() if name != "PREFECT_API_URL"}
    done = evo("automate", str(FILE), "--root", str(tmp_path), environment=none, cwd=tmp_path)
    assert done.returncode == 2 and "evo ui" in done.stderr


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_that_died_with_its_worker_is_crashed_without_a_next_run(
    api: Api, deployments: Any, environment: dict[str, str], checkout: Path, automations: Any, small: Small
) -> None:
    """Five minutes: eight signs of life, thirty seconds apart, have to be missing."""
    assert evo("automate", str(FILE), environment=environment).returncode == 0
    often = environment | {"PREFECT_WORKER_QUERY_SECONDS": "2"}
    worker = start("prefect", "worker", "start", "--pool", "evo", environment=often, cwd=checkout)
    try:
        run = submit(api, deployments, small, "vars.seconds=1000")
        settled(lambda: api.log({"id": run}), lambda log: "tflops" in log, 90)
    finally:
        kill_with_its_runs(worker)
    assert api.get(f"flow_runs/{run}")["state_type"] == "RUNNING"
    ended = settled(lambda: api.get(f"flow_runs/{run}"), is_over, 420)
    assert ended["state_type"] == "CRASHED" and ended["state"]["message"] == "its process died"

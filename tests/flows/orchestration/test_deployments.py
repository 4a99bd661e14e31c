"""prefect.yaml: deployments, the bare name, the clock, a worker, and cancelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from tests.flows.orchestration.conftest import REPOSITORY, Api, is_over, prefect, settled, submit
from tests.flows.orchestration.small import Small

pytestmark = pytest.mark.ui

NAMES = {"pretrain/demo", "pretrain/pretrain-7b", "finetune/finetune-7b", "data-refresh/data-refresh"}


def test_all_deployments_apply(deployments: dict[str, dict[str, Any]], checkout: Path) -> None:
    assert set(deployments) == NAMES
    for deployment in deployments.values():
        assert deployment["work_pool_name"] == "evo"
        assert deployment["job_variables"] == {
            "stream_output": False,
            "env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"},
        }
        pull = {"prefect.deployments.steps.set_working_directory": {"directory": str(checkout)}}
        assert deployment["pull_steps"] == [pull]
        assert (REPOSITORY / deployment["parameters"]["request"]["pipeline"]).is_file()


def test_the_form_of_a_run_is_described_and_checked(deployments: dict[str, dict[str, Any]], api: Api) -> None:
    demo = deployments["pretrain/demo"]
    fields = demo["parameter_openapi_schema"]["definitions"]["Pretrain"]["properties"]
    assert list(fields) == ["pipeline", "set", "targets", "force", "root"]
    assert all(field["title"] and field["description"] for field in fields.values())
    with pytest.raises(HTTPError) as refused:
        api.ask(f"deployments/{demo['id']}/create_flow_run", parameters={"request": {"pipelin": "x.yaml"}})
    assert "pipelin" in refused.value.read().decode()


def test_the_bare_name_runs_in_the_checkout(
    deployments: dict[str, dict[str, Any]], api: Api, environment: dict[str, str], checkout: Path
) -> None:
    done = prefect("deployment", "run", "pretrain-7b", environment=environment, cwd=checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    created = scheduled(api, deployments["pretrain/pretrain-7b"])
    assert [run["parameters"] for run in created] == [{"request": {"pipeline": "configs/pipelines/pretrain-7b.yaml"}}]
    for run in created:
        api.ask(f"flow_runs/{run['id']}/set_state", state={"type": "CANCELLED"}, force=True)


def test_an_unknown_bare_name_is_prefects_own_error(
    deployments: object, environment: dict[str, str], checkout: Path
) -> None:
    done = prefect("deployment", "run", "pretrain-8b", environment=environment, cwd=checkout)
    assert done.returncode == 1
    assert "Invalid deployment name format: pretrain-8b" in done.stderr


def test_an_ambiguous_bare_name_lists_its_meanings(
    deployments: dict[str, dict[str, Any]], api: Api, environment: dict[str, str], checkout: Path
) -> None:
    for name in ("pretrain/demo", "finetune/finetune-7b"):
        api.ask("deployments/", name="twin", flow_id=deployments[name]["flow_id"])
    done = prefect("deployment", "run", "twin", environment=environment, cwd=checkout)
    assert done.returncode == 1
    assert done.stderr == "prefect: 2 deployments are named 'twin'; say which: finetune/twin, pretrain/twin\n"


def test_the_nightly_refresh_is_on_the_clock(deployments: dict[str, dict[str, Any]], api: Api) -> None:
    refresh = deployments["data-refresh/data-refresh"]
    assert refresh["global_concurrency_limit"]["limit"] == 1
    nights = settled(lambda: scheduled(api, refresh), lambda runs: len(runs) >= 3)
    times = {run["expected_start_time"][11:16] for run in nights}
    assert len(nights) >= 3 and times == {"18:00"}  # 02:00 in Shanghai


def test_a_deployment_that_trains_has_no_limit_whose_lease_could_end_it(deployments: dict[str, dict[str, Any]]) -> None:
    limits = {name: (d["global_concurrency_limit"] or {}).get("limit") for name, d in deployments.items()}
    assert limits == {
        "pretrain/demo": None, "pretrain/pretrain-7b": None, "finetune/finetune-7b": None,
        "data-refresh/data-refresh": 1,
    }  # fmt: skip


def test_a_worker_runs_a_deployment(worker: None, deployments: Any, api: Api, small: Small) -> None:
    run = submit(api, deployments, small)
    ended = settled(lambda: api.get(f"flow_runs/{run}"), is_over, 90)
    assert ended["state_type"] == "COMPLETED", api.log(ended)
    assert small.store.artifact("samples", small.plan().step("samples").key).exists
    assert small.store.refs.names() == ["small"]


@pytest.mark.slow  # the short form is that of a run with a job: test_slurm_jobs.py
def test_cancelling_ends_the_run_and_then_its_jobs(worker: None, deployments: Any, api: Api, small: Small) -> None:
    run = submit(api, deployments, small, "vars.seconds=100")
    settled(lambda: api.log({"id": run}), lambda log: "tflops" in log, 60)
    api.ask(f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    ended = settled(lambda: api.get(f"flow_runs/{run}"), is_over, 60)
    assert ended["state_type"] == "CANCELLED"
    log = settled(lambda: api.log({"id": run}), lambda log: "jobs of this run" in log, 20)
    assert "jobs of this run that were cancelled with it: none was running" in log
    assert api.tasks({"id": run})["model"]["state_name"] == "Stopped"


def scheduled(api: Api, deployment: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs of a deployment that wait for their time, or for a worker."""
    wanted = {"type": {"any_": ["SCHEDULED"]}}
    found = api.ask("flow_runs/filter", flow_runs={"state": wanted}, deployments={"id": {"any_": [deployment["id"]]}})
    return list(found)

"""A pipeline as a flow run: its graph, its pages, its failures, and how it stops."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.flows.orchestration.conftest import (
    Api,
    Finished,
    all_over,
    clean_environment,
    evo,
    is_over,
    read_until,
    settled,
    start,
)
from tests.flows.orchestration.small import Small

pytestmark = pytest.mark.ui

RunHere = Callable[..., dict[str, Any]]


def test_the_run_is_a_completed_flow_run_of_the_same_name(finished: Finished) -> None:
    recorded = finished.small.store.runs()[0]
    assert finished.run["name"] == finished.run["labels"]["evo.run"] == recorded["run"]
    assert finished.run["state_type"] == "COMPLETED"
    assert finished.run["parameters"]["request"]["set"] == ["vars.seconds=1.5"]


def test_one_task_per_step_named_with_its_key(finished: Finished) -> None:
    plan = finished.small.plan()
    names = {task["name"] for task in finished.tasks.values()}
    assert names == {f"{step.name} [{step.key[:6]}]" for step in plan.steps}
    assert {task["state_name"] for task in finished.tasks.values()} == {"Completed"}


def test_the_graph_has_an_edge_for_every_need(finished: Finished, api: Api) -> None:
    graph = api.get(f"flow_runs/{finished.run['id']}/graph-v2")
    nodes = {node["id"]: node for _, node in graph["nodes"]}
    names = {id_: node["label"].partition(" ")[0] for id_, node in nodes.items()}
    edges = {(names[parent["id"]], names[id_]) for id_, node in nodes.items() for parent in node["parents"]}
    assert edges == {("raw", "model"), ("raw", "other"), ("model", "scores"), ("model", "samples")}


def test_the_pages_of_a_run(finished: Finished) -> None:
    pages = finished.pages
    assert {key: page["type"] for key, page in pages.items()} == {
        "small-plan": "table",
        "small-model-progress": "progress",
        "small-raw": "markdown",
        "small-model": "markdown",
        "small-other": "markdown",
        "small-scores": "markdown",
        "small-scores-table": "table",
        "small-samples": "markdown",
        "small-lineage": "markdown",
    }
    assert pages["small-model-progress"]["data"] == 100
    assert [row["action"] for row in json.loads(pages["small-plan"]["data"])] == ["run"] * 5
    assert "![training loss](data:image/svg+xml;base64," in pages["small-model"]["data"]
    assert json.loads(pages["small-scores-table"]["data"])[0]["bigram: loss (perplexity)"] == "5.5000 (244.7)"
    assert f"(/artifacts/artifact/{pages['small-model']['id']})" in pages["small-lineage"]["data"]
    assert pages["small-model"]["task_run_id"] == finished.tasks["model"]["id"]


def test_what_was_made_is_an_asset_with_its_sources(finished: Finished, api: Api) -> None:
    plan = finished.small.plan()
    model, raw = (f"evo://{name}-{plan.step(name).key[:12]}" for name in ("model", "raw"))

    def made() -> list[dict[str, Any]]:
        named = {"event": {"name": ["prefect.asset.materialization.succeeded"]}}
        found = api.ask("events/filter", filter=named, limit=50)
        return [event for event in found["events"] if event["resource"]["prefect.resource.id"] == model]

    event = settled(made, bool)[0]
    assert raw in {resource.get("prefect.resource.id") for resource in event["related"]}


def test_training_lines_are_in_the_log(finished: Finished, api: Api) -> None:
    assert "tgs (tokens/gpu/second)=512.0" in api.log(finished.run)


def test_a_second_run_reuses_every_step(finished: Finished, api: Api, run_here: RunHere) -> None:
    again = run_here(finished.small)
    assert again["id"] != finished.run["id"]
    tasks = settled(lambda: api.tasks(again), all_over)
    assert {task["state_name"] for task in tasks.values()} == {"Reused"}
    assert "small-model" in api.artifacts(again)


def test_a_failed_step_fails_the_run_with_its_own_error_and_only_what_needs_it_does_not_run(
    small: Small, api: Api, run_here: RunHere
) -> None:
    run = run_here(small, "vars.fail=true")
    assert isinstance(run["raised"].cause, RuntimeError)
    assert run["state_type"] == "FAILED"
    assert "step model: the loss is not a number" in run["state"]["message"]
    tasks = settled(lambda: api.tasks(run), lambda found: is_over(found["other"]) and is_over(found["model"]))
    assert {name: task["state_type"] for name, task in tasks.items()} == {
        "raw": "COMPLETED", "model": "FAILED", "other": "COMPLETED", "scores": "PENDING", "samples": "PENDING"
    }  # fmt: skip
    assert small.store.artifact("other", small.plan().step("other").key).exists
    assert "not made" in (small.root / "report.html").read_text()


def test_a_night_without_news_is_unchanged(tmp_path: Path, api: Api, run_here: RunHere) -> None:
    nightly = Small(tmp_path)
    nightly.file.write_text(
        "pipeline: nightly\nsteps: {raw: {uses: 'tests.flows.orchestration.kinds:Text', params: {file: text.txt}}}\n"
        "publish: {corpus: raw}\n"
    )
    assert run_here(nightly)["state_name"] == "Completed"
    again = run_here(nightly)
    assert (again["state_name"], again["state_type"]) == ("Unchanged", "COMPLETED")
    assert len(nightly.store.refs.versions("corpus")) == 1
    (tmp_path / "text.txt").write_text("three\n")
    assert run_here(nightly)["state_name"] == "Completed"
    assert len(nightly.store.refs.versions("corpus")) == 2


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((signal.SIGINT, 130), (signal.SIGHUP, 129))),
    ],
)
def test_a_signal_ends_the_run_within_seconds_and_the_next_one_carries_on(
    small: Small, api: Api, environment: dict[str, str], number: signal.Signals, status: int
) -> None:
    words = ["run", str(small.file), "--root", str(small.root), "--set"]
    running = start("evo", *words, "vars.seconds=100", environment=environment)
    read_until(running, "model: tflops")
    told = time.monotonic()
    running.send_signal(number)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == status, out
    assert time.monotonic() - told < 50  # the step would go on for 100
    assert "model stopped" in out and "Traceback" not in out
    run = api.flow_runs(small.root)[0]
    assert (run["state_name"], run["state_type"]) == ("Stopped", "CANCELLED")
    assert api.tasks(run)["model"]["state_name"] == "Stopped"
    assert evo(*words, "vars.seconds=0", "--no-server", environment=environment).returncode == 0


def test_a_mistake_in_the_file_is_said_before_any_server_is_asked(small: Small, tmp_path: Path) -> None:
    small.file.write_text(small.file.read_text().replace("needs: {model: model}", "needs: {modle: model}"))
    done = evo("run", str(small.file), "--root", str(small.root), environment=clean_environment(tmp_path))
    assert done.returncode == 2
    assert "modle" in done.stderr and "Traceback" not in done.stderr
    assert not small.root.exists()


def test_prefect_is_told_no_value_from_the_environment(
    small: Small, run_here: RunHere, api: Api, prefect_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "the-word-that-opens-the-door"
    monkeypatch.setenv("TOKEN", secret)
    call = 'uses: "tests.flows.pipeline.kinds:Call", runtime: {token: "${oc.env:TOKEN}"'
    small.file.write_text(f"pipeline: small\nsteps:\n  good: {{{call}}}}}\n  bad: {{{call}, fail: true}}}}\n")
    run = run_here(small, "steps.bad.params.token=${oc.env:TOKEN}", "steps.bad.params.what=other")
    assert "no answer to '${oc.env:TOKEN}'" in str(run["raised"])
    settled(lambda: api.tasks(run), all_over)
    logs = settled(lambda: api.ask("logs/filter", sort="TIMESTAMP_ASC"), lambda found: "no answer to" in str(found))
    assert "calling with ${oc.env:TOKEN}" in str(logs)
    written = [path for folder in (small.root, prefect_home) for path in folder.rglob("*") if path.is_file()]
    assert [path for path in written if secret.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_a_limit_on_a_tag_keeps_steps_of_two_runs_apart(api: Api, small: Small, tmp_path: Path, run_here: Any) -> None:
    """Kinds and clusters are tags of a step; a step that waits for its turn is no failure."""
    api.ask("concurrency_limits/", tag="test.curve", concurrency_limit=1)
    try:
        other = Small(tmp_path / "other")
        with ThreadPoolExecutor() as threads:
            second = threads.submit(evo_run, other, api)
            first = run_here(small, "vars.seconds=1")
            assert second.result().returncode == 0
        runs = [first, *api.flow_runs(other.root)]
        tasks = [settled(lambda run=run: api.tasks(run), all_over) for run in runs]
    finally:
        api.delete("concurrency_limits/tag/test.curve")
    assert [run["state_type"] for run in runs] == ["COMPLETED"] * 2
    spans = sorted(
        (found[step]["start_time"], found[step]["end_time"]) for found in tasks for step in ("model", "other")
    )
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def evo_run(small: Small, api: Api) -> subprocess.CompletedProcess[str]:
    words = ("run", str(small.file), "--root", str(small.root), "--set", "vars.seconds=1")
    return evo(*words, environment=clean_environment(small.root.parent) | {"PREFECT_API_URL": api.url})

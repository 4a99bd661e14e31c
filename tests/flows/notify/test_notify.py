"""Who is told how a run ended, and what: by real web hooks and commands."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from evo_core.errors import ConfigError
from flows.notify import tell as telling
from flows.orchestration.local_run import run_without_server
from flows.pipeline.failures import StepFailed
from flows.pipeline.plan import Plan, make_plan
from flows.pipeline.schema import load_pipeline
from tasks.launch.launcher import Stopped
from tasks.store import Store, open_store
from tests.flows.pipeline.conftest import Recorder
from tests.monitor.receiver import Receiver, receiving

FAILING = '{uses: "tests.flows.pipeline.kinds:Call", runtime: {token: x, fail: true}}'
WORKING = '{uses: "tests.flows.pipeline.kinds:Call", runtime: {token: x}}'


def planned(folder: Path, notify: str, step: str = FAILING) -> tuple[Plan, Store]:
    file = folder / "p.yaml"
    file.write_text(f"pipeline: nightly\nnotify: {notify}\nsteps:\n  model: {step}\n")
    store = open_store(folder / "store")
    return make_plan(load_pipeline(file), store), store


def run(plan: Plan, store: Store) -> list[str]:
    """Run to the end, whatever it is; gives the lines that were shown."""
    seen = Recorder()
    try:
        run_without_server(plan, store, seen, threading.Event())
    except StepFailed:
        pass
    return [line for what, line in seen.events if what == "says"]


def test_a_failure_is_told_once_with_its_step_and_cause(tmp_path: Path) -> None:
    with receiving() as hook:
        plan, store = planned(tmp_path, f"{{webhook: {hook.url}}}")
        run(plan, store)
    (message,) = hook.messages
    assert message["text"] == "nightly failed at step model: no answer to 'x'"
    assert message["step"] == "model" and message["run"] == plan.run_id and message["outcome"] == "failed"


def test_the_end_of_a_good_run_is_told_where_that_is_wanted(tmp_path: Path) -> None:
    with receiving() as hook:
        run(*planned(tmp_path, f"{{webhook: {hook.url}}}", WORKING))
        assert hook.messages == []
        run(*planned(tmp_path, f"{{webhook: {hook.url}, on: [failed, completed]}}", WORKING))
    assert [message["text"] for message in hook.messages] == ["nightly completed: 1 steps are there"]


def test_a_run_that_a_person_stops_tells_nobody(tmp_path: Path) -> None:
    with receiving() as hook:
        plan, store = planned(tmp_path, f"{{webhook: {hook.url}, on: [failed, completed]}}", WORKING)
        stop = threading.Event()
        stop.set()
        with pytest.raises(Stopped):
            run_without_server(plan, store, Recorder(), stop)
    assert hook.messages == []


@pytest.mark.parametrize("form", ["list", "shell"])
def test_a_command_gets_the_facts(tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    script = tmp_path / "tell.sh"
    script.write_text(f'#!/bin/sh\ncat > "{out}"; echo "$EVO_STEP: $EVO_CAUSE" > "{out}.line"\n')
    script.chmod(0o755)
    command = f"[{script}]" if form == "list" else f"'{script} && true'"
    assert run(*planned(tmp_path, f"{{command: {command}}}"))
    assert json.loads(out.read_text())["text"] == "nightly failed at step model: no answer to 'x'"
    assert Path(f"{out}.line").read_text() == "model: no answer to 'x'\n"


@pytest.mark.parametrize("way", ["refuses", "redirects", "says nothing"])
def test_an_address_that_does_not_take_it_costs_one_line_and_the_run_ends_as_it_ends(tmp_path: Path, way: str) -> None:
    with receiving(way) as hook:
        plan, store = planned(tmp_path, f"{{webhook: {hook.url}}}")
        said = [line for line in run(plan, store) if "notify" in line]
    assert len(said) == 1 and said[0].startswith("notify.webhook: the message was not delivered: ")
    assert Receiver.SECRET not in said[0]
    assert (tmp_path / "store" / "runs" / f"{plan.run_id}.html").exists()


def test_nobody_waits_long_for_an_address_or_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "PATIENCE", 0.5)
    monkeypatch.setattr(telling, "COMMAND_PATIENCE", 0.5)
    with receiving("hangs") as hook:
        began = time.monotonic()
        said = run(*planned(tmp_path, f"{{webhook: {hook.url}, command: 'sleep 60'}}"))
        assert time.monotonic() - began < 10
    assert [line for line in said if "no answer in" in line] and [line for line in said if "did not end in" in line]


def test_a_command_that_fails_is_one_line(tmp_path: Path) -> None:
    said = run(*planned(tmp_path, "{command: 'echo no mail server >&2; exit 3'}"))
    assert "notify.command: the message was not delivered: the command ended with status 3: no mail server" in said


def test_the_address_may_be_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving("refuses") as hook:
        monkeypatch.setenv("HOOK", hook.url)
        plan, store = planned(tmp_path, '{webhook: "${oc.env:HOOK}"}')
        said = run(plan, store)
    assert len(hook.bodies) == 1
    assert Receiver.SECRET not in str(said) + str(plan.record())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and Receiver.SECRET in path.read_text("latin-1")]


def test_a_command_may_leave_something_behind(tmp_path: Path) -> None:
    began = time.monotonic()
    assert not [line for line in run(*planned(tmp_path, "{command: 'sleep 20 & echo hi'}")) if "notify" in line]
    assert time.monotonic() - began < 10


def test_what_is_no_utf_8_is_told_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as hook:
        plan, _ = planned(tmp_path, f"{{webhook: {hook.url}, command: 'cat > {tmp_path}/out'}}")
        said: list[str] = []
        telling.tell(plan, StepFailed("model", RuntimeError("no file caf\udce9.txt")), said.append)
    assert said == [] and "no file caf?" in hook.messages[0]["text"] and "caf?" in (tmp_path / "out").read_text()


def test_a_secret_is_hidden_before_the_sentence_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "https://127.0.0.1:9/a-long-secret-word")
    plan, _ = planned(tmp_path, '{webhook: "${oc.env:HOOK}"}')
    error = RuntimeError("x" * 490 + "https://127.0.0.1:9/a-long-secret-word")
    assert "https://127" not in telling.facts(plan, error)["text"]


def test_a_long_log_is_cut_to_its_sentence(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, "{command: 'true'}")
    error = StepFailed("model", RuntimeError("out of memory on rank 3 (node2); the last lines of log:\n" + "x\n" * 99))
    assert telling.facts(plan, error)["text"].endswith("(node2); the last lines of log")
    assert len(telling.facts(plan, StepFailed("model", RuntimeError("x" * 9999)))["text"]) < 600


@pytest.mark.parametrize(
    ("notify", "message"),
    [
        ("{}", r"p.yaml:2: notify: .*names nobody to tell"),
        ("{webhook: ftp://x/y}", r"p.yaml:2: notify.webhook: .*no address of a web hook"),
        ("{webhook: hooks.slack.com/x}", r"p.yaml:2: notify.webhook: .*no address of a web hook"),
        ("{command: [no-such-program, -x]}", r"p.yaml:2: notify.command.*there is no command 'no-such-program' here"),
        ("{command: ''}", r"p.yaml:2: notify.command.*is empty"),
        ("{comand: [true]}", r"p.yaml:2: notify.comand: unknown key 'comand'; did you mean \"command\""),
        ("{command: 'true', on: [crashed]}", r"p.yaml:2: notify.on.0: .*'failed' or 'completed'"),
        ("{command: 'true', on: []}", r"p.yaml:2: notify.on: "),
    ],
)
def test_a_wrong_block_is_named_before_anything_runs(tmp_path: Path, notify: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(tmp_path, notify)

"""What a pipeline takes from the environment may be a secret: its value is stored and shown nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from evo_core.config.secrets import Secrets
from evo_core.errors import ConfigError
from flows.pipeline.engine import run_plan
from flows.pipeline.failures import StepFailed, reason
from flows.pipeline.plan import Plan, make_plan
from flows.pipeline.schema import load_pipeline
from flows.show.report import write_report
from tasks.store import Store, open_store
from tests.config.jobs import MODEL
from tests.flows.pipeline.conftest import Recorder

SECRET = "hunter2-is-the-word"
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    monkeypatch.setenv("SHORT", "1")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("WORD", "text")


def pipeline_of(folder: Path, step: str, more: str = "", overrides: tuple[str, ...] = ()) -> tuple[Plan, Store]:
    file = folder / "p.yaml"
    file.write_text(f"pipeline: p\n{more}\nsteps:\n  a: {step}\n")
    store = open_store(folder / "store")
    return make_plan(load_pipeline(file, overrides), store), store


def holds(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


CALL = "uses: tests.flows.pipeline.kinds:Call"


@pytest.mark.parametrize(
    ("step", "more", "overrides"),
    [
        (f'{{{CALL}, runtime: {{token: "${{oc.env:TOKEN}}"}}}}', "", ()),
        (f'{{{CALL}, params: {{token: "x-${{oc.env:TOKEN}}"}}, runtime: {{token: "${{vars.t}}"}}}}',
         'vars: {t: "${oc.env:TOKEN}"}', ()),
        (f'{{{CALL}, runtime: {{token: "Bearer ${{oc.env:NOT_SET,${{oc.env:TOKEN}}}}"}}}}', "", ()),
        (f"{{{CALL}}}", "", ("steps.a.runtime.token=${oc.env:TOKEN}",)),
    ],
)  # fmt: skip
def test_a_value_is_used_but_stored_nowhere(tmp_path: Path, step: str, more: str, overrides: tuple[str, ...]) -> None:
    plan, store = pipeline_of(tmp_path, step, more, overrides)
    seen = Recorder()
    refs = run_plan(plan, store, seen, threading.Event())
    write_report(plan, refs, store)
    answer = (store.artifact("a", plan.step("a").key).path / "text").read_text()
    assert answer != "answer to 0 letters"
    assert holds(tmp_path, SECRET) == []
    assert "oc.env:" in str(plan.record())
    assert SECRET not in str(plan.record()) + str(seen.events)
    assert any("calling with " in line and "${oc.env:" in line for what, line in seen.events if what == "says")


def test_an_error_of_a_step_does_not_tell_it(tmp_path: Path) -> None:
    plan, store = pipeline_of(tmp_path, f'{{{CALL}, runtime: {{token: "${{oc.env:TOKEN}}", fail: true}}}}')
    seen = Recorder()
    with pytest.raises(StepFailed, match=r"no answer to '\$\{oc.env:TOKEN\}'") as caught:
        run_plan(plan, store, seen, threading.Event())
    write_report(plan, {}, store, str(caught.value))
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert holds(tmp_path, SECRET) == []


@pytest.mark.parametrize(
    ("params", "key"),
    [
        ('value: "${oc.env:TOKEN}"', "value"),
        ('value: "${oc.env:SHORT}"', "value"),
        ('value: "${oc.env:EMPTY}"', "value"),
        ('value: "${oc.env:NOT_SET,en}"', "value"),
        ('value: "a ${oc.env:TOKEN} b"', "value"),
        ('value: "${vars.t}"', "value"),
        ('values: [1, "${oc.env:TOKEN}"]', "values"),
        ('table: {deep: {er: "${oc.env:TOKEN}"}}', "table"),
    ],
)
def test_what_enters_a_key_may_not_be_one(tmp_path: Path, params: str, key: str) -> None:
    step = f"{{uses: 'tests.flows.pipeline.kinds:Echo', params: {{{params}}}}}"
    with pytest.raises(ConfigError, match=rf"p.yaml:4: steps.a.params.{key}: .*oc.env:.* may be a secret") as caught:
        pipeline_of(tmp_path, step, 'vars: {t: "${oc.env:TOKEN}"}')
    assert SECRET not in str(caught.value)
    assert "--set" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        'pipeline: "${oc.env:TOKEN}"\nsteps: {a: {uses: "tests.flows.pipeline.kinds:Echo"}}\n',
        'pipeline: p\nsteps: {a: {uses: "${oc.env:TOKEN}"}}\n',
        'pipeline: p\nsteps: {a: {uses: "tests.flows.pipeline.kinds:Add", needs: {to: "ref:${oc.env:TOKEN}"}}}\n',
        'pipeline: p\nsteps: {a: {uses: "tests.flows.pipeline.kinds:Echo"}}\npublish: {x: "${oc.env:TOKEN}"}\n',
        'pipeline: p\nsteps: {a: {uses: "tests.flows.pipeline.kinds:Call", runtime: {fail: "${oc.env:TOKEN}"}}}\n',
        'pipeline: p\nsteps: {a: {uses: "tests.flows.pipeline.kinds:Call", runtime: "${oc.env:TOKEN}"}}\n',
        'pipeline: p\nsteps: {a: {uses: "tests.flows.pipeline.kinds:Add", params: {amount: "${oc.env:TOKEN}"}}}\n',
        'pipeline: p\nsteps: {a: {uses: "source.files", params: {root: "${oc.env:TOKEN}"}}}\n',
        'pipeline: p\nsteps: {a: {uses: "train.pretrain", params: {config: "${oc.env:TOKEN}.yaml"}}}\n',
        'pipeline: p\nsteps: {a: {uses: "eval.holdout", runtime: {time: "${oc.env:TOKEN}"}}}\n',
    ],
)
def test_an_error_does_not_tell_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows.cli", "plan", "p.yaml", "--root", "store"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "${oc.env:TOKEN}" in done.stderr


def test_a_training_job_keeps_references_and_refuses_them_in_its_identity(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"model: {MODEL}\nadam: {{lr: '${{oc.env:SHORT}}'}}\n")
    raw = "{uses: 'tests.flows.pipeline.kinds:Word'}"
    blocks = 'job_name: "${oc.env:TOKEN}", monitor: {alert: {feishu_alert_address: "https://${oc.env:TOKEN}"}}'
    file = tmp_path / "p.yaml"
    step = f"{{uses: train.pretrain, needs: {{data: ref:corpus}}, params: {{config: job.yaml, {blocks}}}}}"
    file.write_text(f"pipeline: p\nsteps:\n  w: {raw}\n  a: {step}\n")
    pipeline = load_pipeline(file)
    job = pipeline.step("a").params.job
    assert job.job_name == SECRET
    assert job.shown.job_name == "${oc.env:TOKEN}"
    assert SECRET not in job.to_yaml()
    with pytest.raises(ConfigError, match=r"^adam.lr: \$\{oc.env:SHORT\} may be a secret"):
        pipeline.step("a").kind.identity(pipeline.step("a").params, pipeline.step("a").runtime)


def test_a_common_word_garbles_nothing() -> None:
    secrets = Secrets(
        {"a": "${oc.env:A}", "b": "${oc.env:B}"}, {"1": "${oc.env:A}", "data": "${oc.env:B}", "": "${oc.env:C}"}
    )
    assert secrets.conceal("step 1 of 10 in the database") == "step 1 of 10 in the database"
    assert secrets.conceal("must be at least 3, not 1", "a") == "must be at least 3, not ${oc.env:A}"
    assert secrets.conceal("no folder data") == "no folder ${oc.env:B}"


LINES = 'first "line" \\ of it\nsecond/line+äö==\n}\n'


@pytest.mark.parametrize("write", [str, repr, json.dumps, partial(json.dumps, ensure_ascii=False), quote, quote_plus])
@pytest.mark.parametrize("told", [LINES, *LINES.splitlines()[:2]])
def test_a_value_is_known_in_the_forms_that_programs_write(write: Callable[[str], str], told: str) -> None:
    secrets = Secrets({"a.token": "${oc.env:TOKEN}"}, {LINES: "${oc.env:TOKEN}"})
    said = secrets.conceal(f"?key={write(told)}&more={{}}")
    assert said.replace('"', "").replace("'", "") == "?key=${oc.env:TOKEN}&more={}"


def test_a_way_out_does_not_tell_it() -> None:
    secrets = Secrets({"a.token": "${oc.env:TOKEN}"}, {SECRET: "${oc.env:TOKEN}"})
    assert reason(secrets.concealed(SystemExit(f"no {SECRET}"))) == "its code called sys.exit('no ${oc.env:TOKEN}')"


def test_a_literal_that_looks_like_a_reference_stays_one(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"model: {MODEL}\n")
    step = r'{uses: train.pretrain, needs: {data: ref:corpus}, params: {config: job.yaml, job_name: "\\${vars.x}"}}'
    (tmp_path / "p.yaml").write_text(f"pipeline: p\nsteps:\n  a: {step}\n")
    assert load_pipeline(tmp_path / "p.yaml").step("a").params.job.job_name == "${vars.x}"

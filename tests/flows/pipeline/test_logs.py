"""`evo logs`: of every kind of step there is something true to show, while it is made, where it failed, and after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evo_core.errors import UserError
from flows.pipeline.failures import StepFailed
from flows.pipeline.logs import find_steps, log_files
from flows.show import log_follow
from flows.show.log_follow import LogPrinter
from tests.flows.pipeline.conftest import Bench

SLOW = """\
pipeline: slow
steps:
  start: {uses: "tests.flows.pipeline.kinds:Call", runtime: {token: "${oc.env:MY_TOKEN}"}}
  late: {uses: "tests.flows.pipeline.kinds:Deaf", runtime: {seconds: 2}}
"""


def evo(bench: Bench, *words: str, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "EVO_ROOT": str(bench.store.root), "MY_TOKEN": "hush-hush-hush"}
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment, **options}
    return subprocess.Popen([sys.executable, "-m", "flows.cli", *words], **settings)  # type: ignore[call-overload]


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def shown(bench: Bench, step: str) -> str:
    steps, _ = find_steps(bench.store, step)
    return "".join(path.read_text() for one in steps for path in log_files(bench.store, one.key).values())


@pytest.fixture
def slow(bench: Bench) -> Iterator[Bench]:
    """A run in another process whose second step sleeps."""
    bench.file.write_text(SLOW)
    running = evo(bench, "run", str(bench.file), "--no-server", stdout=subprocess.DEVNULL)
    yield bench
    running.wait(30)


def test_a_step_is_followed_to_its_end_and_secrets_stay_references(slow: Bench) -> None:
    wait_until(lambda: slow.store.runs())
    follower = evo(slow, "logs", "late", "-f")
    assert follower.stdout is not None
    assert "[evo] run slow-" in follower.stdout.readline()
    assert follower.stdout.readline().endswith(" it sleeps\n")
    out, err = follower.communicate(timeout=30)
    assert (out.splitlines()[-1].partition(" ")[2][:15], err, follower.returncode) == ("[evo] made in 2", "", 0)
    out, _ = evo(slow, "logs", "start").communicate(timeout=30)
    assert "calling with ${oc.env:MY_TOKEN}" in out and "hush" not in out
    state = slow.store.state(find_steps(slow.store, "start")[0][0].key)
    with next(state.glob("log-*.txt")).open("a") as log:
        log.write("a job's own words: hush-hush-hush\n")
    out, _ = evo(slow, "logs", "start", "-n", "1").communicate(timeout=30)
    assert out == "a job's own words: ${oc.env:MY_TOKEN}\n"


def test_ctrl_c_ends_with_130_and_a_closed_pipe_without_a_word(slow: Bench) -> None:
    wait_until(lambda: slow.store.runs())
    stopped, unread = evo(slow, "logs", "late", "-f"), evo(slow, "logs", "late", "-f")
    for follower in (stopped, unread):
        assert follower.stdout is not None and follower.stdout.readline()
    stopped.send_signal(signal.SIGINT)
    assert stopped.communicate(timeout=20)[1] == "evo: stopped\n" and stopped.returncode == 130
    assert unread.stdout is not None and unread.stderr is not None
    unread.stdout.close()
    began = time.monotonic()
    assert unread.wait(20) in (0, 141) and unread.stderr.read() == ""
    assert time.monotonic() - began < 5


def test_a_failed_step_says_why_and_the_next_try_is_added(bench: Bench) -> None:
    with pytest.raises(StepFailed):
        bench.run("steps.first.runtime.fail=true")
    told = shown(bench, "first")
    assert "Traceback" in told and told.rstrip().endswith("[evo] failed: the sum overflowed")
    assert len(log_files(bench.store, find_steps(bench.store, "first")[0][0].key)) == 1
    bench.run()
    assert shown(bench, "first").startswith(told) and "[evo] made in" in shown(bench, "first")


def test_the_newest_run_that_has_the_step_is_meant_unless_one_is_named(bench: Bench) -> None:
    bench.run()
    first = bench.store.runs()[-1]["run"]
    bench.run("vars.amount=3", targets=["first"])
    one, other = find_steps(bench.store, "first")[0][0], find_steps(bench.store, "first", first)[0][0]
    assert one.key != other.key and other.run == first
    assert find_steps(bench.store, "second")[0][0].run == first
    assert find_steps(bench.store, one.key[:8])[0][0] == one
    for words, told in {
        ("frist",): 'did you mean "first"',
        ("first", "sums"): "several runs begin with 'sums'",
    }.items():
        with pytest.raises(UserError, match=told):
            find_steps(bench.store, *words)


def test_every_task_of_an_array_and_the_newest_attempt_only(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run()
    key = find_steps(bench.store, "first")[0][0].key
    for name in ("log-2-0.txt", "log-2-1.txt", "log-1-0.txt"):
        (bench.store.state(key) / name).write_text(f"words of {name}\n")
    logs = log_files(bench.store, key)
    assert list(logs) == ["log-2-0.txt", "log-2-1.txt"]
    LogPrinter().show(logs, None)
    assert capsys.readouterr().out == (
        "==> log-2-0.txt <==\nwords of log-2-0.txt\n\n==> log-2-1.txt <==\nwords of log-2-1.txt\n"
    )


def test_without_its_state_folder_an_artifact_has_the_log_of_its_job(bench: Bench) -> None:
    bench.run()
    key = find_steps(bench.store, "first")[0][0].key
    artifact = bench.store.with_key(key)
    assert artifact is not None
    (artifact.path / "log.txt").write_text("from the job")
    next(bench.store.state(key).glob("log-*.txt")).unlink()
    assert shown(bench, "first") == "from the job"


def test_a_follower_outlives_a_cut_log_and_goes_on_to_the_next_attempt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_follow, "LOOK", 0.01)
    monkeypatch.setattr(log_follow, "SETTLE", 0.05)
    first, second = tmp_path / "log-1.txt", tmp_path / "log-2.txt"
    first.write_text("one\ntwo\nthr")
    going = True
    printed = ""

    def wait_for(text: str) -> None:
        def seen() -> bool:
            nonlocal printed
            printed += capsys.readouterr().out
            return text in printed

        wait_until(seen, 5)

    def newest() -> dict[str, Path]:
        path = second if second.exists() else first
        return {path.name: path}

    thread = threading.Thread(target=LogPrinter().follow, args=(newest, 1, lambda: going))
    thread.start()
    wait_for("two\n")
    with first.open("a") as log:
        log.write("ee\n")
    wait_for("three\n")
    first.write_text("anew\n")
    wait_for("anew\n")
    second.write_text("again\nno end")
    wait_for("again\n")
    going = False
    thread.join(5)
    printed += capsys.readouterr().out
    assert not thread.is_alive()
    assert printed == "two\nthree\nanew\n\n==> log-2.txt <==\nagain\nno end\n"

"""`evo doctor`: what it says of a machine that is well and of one that is not, in bounded time, without a secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flows.doctor import git, machine, packages, prefect, s3, slurm, store
from flows.doctor.examine import examine
from flows.doctor.finding import Asked, Check, Finding
from flows.doctor.programs import NoAnswer, answer
from flows.doctor.shown import bare_address, without_secrets
from flows.show.findings import print_findings

Found = dict[str, list[Finding]]


def by_subject(findings: list[Finding]) -> Found:
    found: Found = {}
    for finding in findings:
        found.setdefault(finding.subject, []).append(finding)
    return found


def doctor(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SLURM_", "AWS_", "S3_"))
    }
    command = [sys.executable, "-m", "flows.cli", "doctor", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**own, **environment}, check=False)


def test_a_machine_that_is_well_has_status_0_and_every_subject(tmp_path: Path) -> None:
    ended = doctor("--root", str(tmp_path / "store"), "--json")
    assert ended.returncode == 0, ended.stdout
    found = by_subject([Finding(**finding) for finding in json.loads(ended.stdout)])
    expected = {
        "python", "packages", "torch", "gpus", "attention", "cores", "memory", "shared memory", "open files", "locale",
        "store", "disk", "hard links", "file locks", "sync of folders", "clock", "git", "slurm", "cluster local", "s3",
        "prefect",
    }  # fmt: skip
    assert expected <= set(found)
    assert found["store"][0].message.startswith(f"{tmp_path}/store on ")
    assert list(tmp_path.iterdir()) == []  # what it tried is gone


def test_a_problem_has_status_1_and_says_what_to_do_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "mine.yaml").write_text("kind: slurm\npartiton: gpu\n")
    ended = doctor(
        *("--root", str(tmp_path / "file"), "--cluster", str(tmp_path / "mine.yaml")),
        PREFECT_API_URL="http://me:my-own-word@127.0.0.1:9/api",
        PATH=str(tmp_path),
    )
    assert ended.returncode == 1
    assert "✗ store" in ended.stdout and "the store must be a folder, and this is a file" in ended.stdout
    assert 'mine.yaml:2: partiton: unknown key; did you mean "partition"?' in ended.stdout
    assert "no Prefect server answers at http://127.0.0.1:9/api" in ended.stdout
    assert "not on PATH: sbatch" in ended.stdout and "manifests name no commit" in ended.stdout
    assert "my-own-word" not in ended.stdout + ended.stderr and "Traceback" not in ended.stderr
    assert ended.stdout.rstrip().splitlines()[-1].startswith(("4 problems", "5 problems"))


def test_what_hangs_or_fails_is_a_finding_and_keeps_nobody_waiting() -> None:
    def hangs(asked: Asked) -> Iterator[Finding]:
        yield Finding("disk", "ok", "is there")
        threading.Event().wait(30)

    def fails(asked: Asked) -> Iterator[Finding]:
        raise RuntimeError("no such luck")
        yield

    began = time.monotonic()
    found = by_subject(examine(Asked(), [Check("disk", hangs, 0.3), Check("luck", fails)]))
    assert time.monotonic() - began < 5
    assert [(f.verdict, f.message) for f in found["disk"]] == [
        ("ok", "is there"),
        ("problem", "not through after 0.3 s"),
    ]
    assert found["luck"][0].message == "the check itself failed: RuntimeError: no such luck"


def test_a_program_that_hangs_with_a_child_on_its_pipe_is_ended(tmp_path: Path) -> None:
    program = tmp_path / "sinfo"
    program.write_text("#!/bin/sh\nsleep 60 &\nwait\n")
    program.chmod(0o755)
    began = time.monotonic()
    with pytest.raises(NoAnswer, match=r"^sinfo gave no answer in 0\.3 s$"):
        answer([str(program)], 0.3)
    assert time.monotonic() - began < 5
    with pytest.raises(NoAnswer, match=r"^sh: bad$"):
        answer(["sh", "-c", "echo good; echo bad >&2; exit 3"], 5)
    with pytest.raises(NoAnswer, match="cannot be run: No such file"):
        answer([str(tmp_path / "none")], 5)


def test_versions_that_break_and_packages_that_are_missing() -> None:
    asked = [
        Requirement(text) for text in ("pydantic<2", "fastapi<0.1", "no-such-package", "rich>=13", 'x; extra == "y"')
    ]
    told = list(packages._faults(asked, ""))
    assert told[0].startswith("pydantic 2.") and told[0].endswith("is installed, pydantic<2 is needed")
    assert told[1].endswith("fastapi<0.1 is needed: with a newer one no flow of Prefect starts")
    assert told[2:] == ["no-such-package is not installed"]
    assert packages._extra(asked, "y").verdict == "not here"


def test_a_disk_that_cannot_be_written_is_a_problem_by_name() -> None:
    found = by_subject(list(store.look(Asked(root="/proc/evo"))))
    assert [finding.verdict for finding in found["store"]] == ["ok", "problem"]
    assert found["store"][1].message.startswith("/proc cannot be written: ")


def test_limits_of_the_process_are_seen() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))\n"
        "from flows.doctor import machine\nfrom flows.doctor.finding import Asked\n"
        "print(*[(f.subject, f.verdict) for f in machine.look(Asked())])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "('open files', 'warning')" in told and "('cores', " in told


def test_no_value_of_a_secret_variable_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "abcdef123")
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://user:word@127.0.0.1:1/x?token=abc")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    assert without_secrets("it says abcdef123") == "it says $SOME_API_KEY"
    assert bare_address("http://user:word@127.0.0.1:1/x?token=abc") == "http://127.0.0.1:1/x"
    told = str(examine(Asked(), [Check("s3", s3.look)]))
    assert "http://127.0.0.1:1/x" in told and not any(word in told for word in ("word@", "token", "wJalr"))


def test_nothing_that_nobody_needs_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "S3_", "SLURM_", "PREFECT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    checks = [Check("x", look) for look in (slurm.look, s3.look, prefect.look, git.look, machine.look)]
    found = examine(Asked(), checks)
    assert not [finding for finding in found if finding.verdict == "problem"]
    assert {f.subject for f in found if f.verdict == "not here"} == {"slurm", "s3", "containers"}


def test_findings_are_lines_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings([Finding("a", "ok", "[bold]", "unsaid"), Finding("bcd", "warning", "odd", "mend it")])
    assert capsys.readouterr().out == "✓ a    [bold]\n! bcd  warning: odd\n       → mend it\n0 problems, 1 warning\n"

"""The table of exit statuses in docs/pipelines.md: every command is in it, and each status has a test that is named
here, of a real process wherever one is cheap."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evo_core.data.commands import app as data_app
from flows.cli import app, main
from tests.command_line.commands import cli

ROOT = Path(__file__).parents[2]
HERE = "command_line/test_exit_status.py::test_real_processes"
ENDS = "command_line/test_exit_status.py::test_how_commands_end"
CTRL_C = "command_line/test_exit_status.py::test_ctrl_c_in_the_middle_of_a_command"
SIGNALS = "flows/orchestration/test_signals.py::"
UI = "flows/orchestration/test_server.py::test_evo_ui_shows_the_store_serves_later_runs_and_leaves_no_process"
FULL = "generate/test_command.py::test_full_and_closed_outputs_are_one_line"
INSPECT, ESTIMATE = "inspect/test_inspect.py::", "estimate/test_command.py::"

PROOFS: dict[str, dict[int, str]] = {
    "run": {
        0: HERE, 1: HERE, 2: HERE,
        129: f"{SIGNALS}test_a_closed_terminal_stops_the_run_in_order",
        130: f"{SIGNALS}test_a_second_ctrl_c_ends_everything_at_once_whatever_a_step_does",
        143: f"{SIGNALS}test_other_signals_said_twice_are_one_request",
    },
    "plan": {0: ENDS, 2: ENDS}, "why": {0: ENDS, 2: ENDS}, "dag": {0: ENDS, 2: ENDS}, "status": {0: ENDS, 2: ENDS},
    "trace": {0: ENDS, 2: ENDS},
    "logs": {
        0: "flows/pipeline/test_logs.py::test_a_step_is_followed_to_its_end_and_secrets_stay_references",
        2: ENDS,
        130: "flows/pipeline/test_logs.py::test_ctrl_c_ends_with_130_and_a_closed_pipe_without_a_word",
    },
    "doctor": {
        0: "flows/doctor/test_doctor.py::test_a_machine_that_is_well_has_status_0_and_every_subject",
        1: "flows/doctor/test_doctor.py::test_a_problem_has_status_1_and_says_what_to_do_and_no_secret",
        2: ENDS,
    },
    "ui": {0: UI, 2: UI},
    "automate": {
        0: "flows/orchestration/test_automations.py::test_without_an_address_the_other_automations_are_applied",
        2: "flows/orchestration/test_automations.py::test_a_wrong_file_is_named",
    },
    "train": {
        0: "train/test_command.py::test_success_leaves_progress",
        1: "train/test_command.py::test_a_crash_is_a_traceback_status_1_and_error_json_of_the_first_rank",
        2: "train/test_command.py::test_a_wrong_key_is_found_before_torch_is_imported",
        124: "train/test_stuck.py::test_a_lone_process",
        143: "train/test_command.py::test_a_signal_saves_and_exits_with_143",
    },
    "evaluate": {0: "evaluate/test_tasks.py::test_the_command_and_a_comparison", 1: FULL, 2: FULL, 130: CTRL_C},
    "generate": {
        0: "generate/test_command.py::test_the_whole_command_in_a_process_of_its_own", 1: FULL,
        2: "generate/test_command.py::test_mistakes_are_one_line_and_leave_nothing", 130: CTRL_C,
    },
    "serve": {
        1: "serve/test_command.py::test_output_that_cannot_be_written_is_one_line",
        2: "command_line/test_commands.py::test_a_wrong_word_is_one_line_and_status_2",
        **dict.fromkeys(
            (129, 130, 143), "serve/test_command.py::test_a_signal_ends_it_even_in_the_middle_of_a_text"
        ),
    },
    "convert": {0: "convert/test_command.py::test_under_evo", 2: "convert/test_command.py::test_the_command_line"},
    "inspect": {0: f"{INSPECT}test_a_script_gets_all_of_it", 2: f"{INSPECT}test_where_there_is_none"},
    "estimate": {
        0: f"{ESTIMATE}test_the_table_and_the_settings_to_paste",
        2: f"{ESTIMATE}test_wrong_input_is_one_line",
    },
    "parity": {
        0: "parity/test_command.py::test_the_list",
        1: "parity/test_command.py::test_a_miss_is_told_and_ends_with_its_status",
        2: "parity/test_command.py::test_wrong_input",
    },
    "data tokenize": {0: "data/commands/test_tokenize.py::", 2: "data/commands/test_tokenize.py::"},
    "data tokenize-sft": {0: "data/commands/test_tokenize_sft.py::", 2: "data/commands/test_tokenize_sft.py::"},
    "data shard": {0: "data/commands/test_shard.py::", 2: "data/commands/test_shard.py::"},
    "data stats": {0: "data/inspection/test_inspect.py::", 2: HERE},
    "data head": {0: "data/inspection/test_inspect.py::", 2: "data/inspection/test_inspect.py::"},
    "data verify": {0: "data/inspection/test_inspect.py::", 2: "data/inspection/test_inspect.py::"},
}  # fmt: skip
"""Of each command, the tests in which it ends with each status of its own; one that ends in ``::`` is a whole file."""


def documented() -> dict[str, set[int]]:
    """The table's commands and statuses."""
    page = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8").partition("## Exit status")[2]
    found: dict[str, set[int]] = {}
    for commands, statuses in re.findall(r"^\| (`.*?`) \| (.*?) \|$", page, re.MULTILINE):
        numbers = {int(number) for number in re.findall(r"(?:^|· |, )(\d+)\b", statuses)}
        found |= dict.fromkeys(re.findall(r"`(.*?)`", commands), numbers)
    return found


def test_every_command_is_in_the_table_and_every_status_has_its_test() -> None:
    groups = {"data": [f"data {name}" for name in cli(data_app).commands]}
    commands = {one for name in cli(app).commands for one in groups.get(name, [name])}
    assert set(documented()) == commands
    assert {command: set(proofs) for command, proofs in PROOFS.items()} == documented()


@pytest.mark.parametrize("proof", sorted({proof for proofs in PROOFS.values() for proof in proofs.values()}))
def test_the_tests_that_are_named_are_there(proof: str) -> None:
    file, _, name = proof.partition("::")
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert f"def {name}(" in text if name else "def test_" in text


def test_real_processes(tmp_path: Path) -> None:
    write_pipelines(tmp_path)
    for line, status in {
        "run word.yaml --no-server": 0,
        "run fails.yaml --no-server": 1,
        "run word.yaml --set steps.b.params.x=1": 2,
        "data stats none": 2,
    }.items():
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "EVO_ROOT": str(tmp_path / "store")}
        command = [sys.executable, "-m", "flows.cli", *line.split()]
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert ended.returncode == status, f"{line}: {ended.stdout}{ended.stderr}"
        if status == 2:
            assert ended.stderr.count("\n") == 1 and "Traceback" not in ended.stderr, f"{line}: {ended.stderr}"


def test_how_commands_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_pipelines(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVO_ROOT", str(tmp_path / "store"))
    assert status_of("run word.yaml --no-server", monkeypatch) == 0
    for line in ("plan word.yaml", "why word.yaml a", "dag word.yaml", "status", "trace a", "logs a"):
        assert status_of(line, monkeypatch) == 0, line
    capsys.readouterr()
    for line in (
        "plan none.yaml", "why word.yaml b", "dag word.yaml --format x", "status --root word.yaml", "trace nothing",
        "logs b", "logs a --run none", "doctor --rot x",
    ):  # fmt: skip
        assert status_of(line, monkeypatch) == 2, line
        assert capsys.readouterr().err.count("\n") == 1, line


def write_pipelines(folder: Path) -> None:
    kinds = "tests.flows.pipeline.kinds"
    (folder / "word.yaml").write_text(f'pipeline: p\nsteps: {{a: {{uses: "{kinds}:Word"}}}}\n')
    step = f'{{uses: "{kinds}:End", params: {{how: a key}}}}'
    (folder / "fails.yaml").write_text(f"pipeline: p\nsteps: {{a: {step}}}\n")


def status_of(line: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """What `evo` would end with, here and now."""
    monkeypatch.setattr(sys, "argv", ["evo", *line.split()])
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


def test_ctrl_c_in_the_middle_of_a_command(tmp_path: Path) -> None:
    for name in ("here", "here.yaml"):
        (tmp_path / name).write_text("{}")
    for command, words in {"evaluate": ["--compare", "here", "here"], "generate": ["--config", "here.yaml"]}.items():
        code = (
            "import os, signal, sys\n"
            "def stop(event, args):\n"
            "    if event == 'open' and str(args[0]).rpartition('/')[2] in ('here', 'here.yaml'):\n"
            "        os.kill(os.getpid(), signal.SIGINT)\n"
            f"sys.addaudithook(stop)\nfrom evo_core.{command}.command import main\nmain({words})"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert (ended.returncode, ended.stderr) == (130, f"evo_core.{command}: interrupted\n")

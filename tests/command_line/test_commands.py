"""Every command of `evo` and of evo_core: its help, its options, what it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import evo_core
from evo_core.command_line.launcher_options import Backend, Host, Launcher, Port
from evo_core.command_line.program import invoke
from evo_core.errors import ConfigError
from flows.cli import app
from flows.commands.jobs import SUMMARIES
from tests.command_line.commands import cli, commands, job_app, parameters, parse
from tests.train.jobs import write_job

COMMANDS = list(commands())
each_command = pytest.mark.parametrize(
    ("typed", "program", "words"), COMMANDS, ids=[" ".join(typed) for typed, _, _ in COMMANDS]
)


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 60, **options}
    return subprocess.run([sys.executable, *arguments], **settings)  # type: ignore[call-overload]


def shown(options: list[str]) -> str:
    """The one of an option's names that is longest."""
    return max(options, key=len)


def test_there_are_commands() -> None:
    assert len(COMMANDS) == 24


@each_command
def test_help_names_every_option_and_fits(
    typed: tuple[str, ...],
    program: typer.Typer,
    words: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "evo" if words else " ".join(typed)
    for option in ("--help", "-h"):
        assert invoke(program, [*words, option], name) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: {' '.join(typed)} [OPTIONS]")
    assert max(map(len, text.splitlines())) <= 80
    assert text.isprintable() or set("".join(filter(lambda letter: not letter.isprintable(), text))) == {"\n"}
    for parameter in parameters(program, words):
        if getattr(parameter, "hidden", False):
            continue
        for spelling in (*parameter.opts, *parameter.secondary_opts):
            known = spelling if spelling.startswith("-") else parameter.metavar
            assert re.search(rf"(?<![\w-]){re.escape(known)}(?![\w-])", text), known
        assert parameter.help and parameter.help.endswith((".", "]", "…")), f"{parameter.name} has no help"


@each_command
def test_an_unknown_option_is_told_with_the_one_that_is_meant(
    typed: tuple[str, ...], program: typer.Typer, words: tuple[str, ...]
) -> None:
    options = [p for p in parameters(program, words) if p.opts[0].startswith("--") and not getattr(p, "hidden", False)]
    assert options
    name = "evo" if words else " ".join(typed)
    for option in options:
        meant = shown(option.opts)
        wrong = f"{meant[:3]}{meant[3:]}x"
        with pytest.raises(ConfigError) as told:
            invoke(program, [*words, wrong, "1"], name)
        assert told.value.key == wrong
        assert told.value.message == f'no such option; did you mean "{meant}"?'
        assert told.value.hint == f"{' '.join(typed)} --help lists them"


def test_the_lists_of_commands_cut_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert invoke(app, ["--help"], "evo") == 0
    assert invoke(app, ["data", "--help"], "evo") == 0
    assert "..." not in capsys.readouterr().out.replace("[ARGS]...", "")


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_list_says_of_a_job_what_its_help_says(name: str) -> None:
    said = re.split(r"\n\n|\n\x08", cli(job_app(name)).help)[0]
    assert " ".join(said.split()) == SUMMARIES[name]


def test_commands_that_join_ranks_have_the_same_options_for_it() -> None:
    folder = Path(evo_core.__file__).parent
    joining = {
        path.parent.name
        for path in folder.glob("*/command.py")
        if re.search(r"with ranks\(", path.read_text(encoding="utf-8"))
    }
    assert joining == {"train", "evaluate", "generate"}

    reference = typer.Typer(rich_markup_mode=None)

    @reference.command()
    def joins(launcher: Launcher = None, backend: Backend = None, host: Host = None, port: Port = None) -> None: ...

    def described(program: typer.Typer) -> dict[str, object]:
        return {
            p.name: (p.opts, p.help, p.metavar, p.type_descriptor.annotation, p.default, p.required)
            for p in cli(program).params
            if p.name in ("launcher", "backend", "host", "port")
        }

    for name in joining:
        assert described(job_app(name)) == described(reference), name


@pytest.mark.parametrize(
    ("program", "prefix"),
    [
        (("-m", "evo_core.train"), "evo_core.train: error: "),
        (("-m", "evo_core.evaluate"), "evo_core.evaluate: error: "),
        (("-m", "evo_core.data", "shard"), "evo_core.data: error: "),
        (("-m", "flows.cli", "plan"), "evo: "),
        (("-m", "flows.cli", "train"), "evo train: error: "),
    ],
)
def test_a_wrong_word_is_one_line_and_status_2(program: tuple[str, ...], prefix: str) -> None:
    ended = run(*program, "--hlep")
    assert (ended.returncode, ended.stdout) == (2, "")
    typed = " ".join(program).replace("-m flows.cli", "evo").replace("-m evo", "python -m evo")
    assert ended.stderr == f'{prefix}--hlep: no such option; did you mean "--help"? ({typed} --help lists them)\n'


def test_the_usage_says_what_was_typed() -> None:
    assert run("-m", "evo_core.train", "--help").stdout.startswith("Usage: python -m evo_core.train [OPTIONS]\n")
    assert run("-m", "flows.cli", "train", "--help").stdout.startswith("Usage: evo train [OPTIONS]\n")


def test_a_mistake_on_the_command_line_is_left_for_the_launcher(tmp_path: Path) -> None:
    environment = {**os.environ, "EVO_JOB_FOLDER": str(tmp_path)}
    ended = run("-m", "evo_core.train", "--confg", "x", env=environment)
    assert ended.returncode == 2
    assert '"user_error": true' in (tmp_path / "error.json").read_text()


def test_help_that_nobody_reads_is_no_traceback() -> None:
    for program, status in (("evo_core.train", 1), ("flows.cli", 141)):
        read, write = os.pipe()
        os.close(read)
        ended = run("-m", program, "--help", stdout=write)
        os.close(write)
        assert ended.returncode == status
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["evo", "--help"], {"torch", "numpy", "prefect", "pydantic", "evo_core.train.command"}),
        (["evo", "train", "--help"], {"torch", "numpy", "prefect"}),
        (["evo", "data", "shard", "--help"], {"torch", "numpy", "prefect"}),
    ],
)
def test_help_imports_nothing_heavy(words: list[str], heavy: set[str]) -> None:
    code = (
        f"import sys; sys.argv = {words}\nfrom flows.cli import main\n"
        f"try: main()\nexcept SystemExit: pass\nprint(*({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    ended = run("-c", code)
    assert (ended.returncode, ended.stderr) == (0, "\n")


def test_commands_of_evo_core_stand_alone() -> None:
    names = ", ".join(f"evo_core.{name}.command" for name in SUMMARIES)
    heavy = {"torch", "prefect", "flows", "tasks"}
    code = f"import sys, {names}, evo_core.data.commands\nprint(*{heavy} & {{*sys.modules}})"
    assert run("-c", code).stdout == "\n"


def test_several_words_after_init_content() -> None:
    before = parse(["evo", "train", "--config", "c", "--init-content", "model", "optimizer", "--seed", "-3"])
    assert [part.value for part in before["init_content"]] == ["model", "optimizer"]
    assert before["seed"] == -3
    repeated = parse(["evo", "train", "--init-content", "model", "--init-content=sampler", "--config", "c"])
    assert [part.value for part in repeated["init_content"]] == ["model", "sampler"]
    for words in (["--init-content"], ["--init-content", "model", "modle"], ["--init-content", "--config"]):
        with pytest.raises(ConfigError, match=r"^--init-content: "):
            invoke(job_app("train"), ["--config", "c", *words], "evo train")


def test_allowed_tensors_without_a_checkpoint_to_start_from(tmp_path: Path) -> None:
    write_job(tmp_path)
    words = ["--config", str(tmp_path / "job.yaml"), "--init-allow-missing", "head.weight"]
    with pytest.raises(ConfigError, match=r"^--init-allow-missing: there is no --init"):
        invoke(job_app("train"), words, "evo train")

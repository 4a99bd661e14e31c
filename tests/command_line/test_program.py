"""A command line carried out: what it may hold, how it ends, and how its mistakes are told."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated, Literal

import pytest
import typer

from evo_core.command_line.program import invoke, plain_app, run
from evo_core.errors import ConfigError, DataError

taken: dict[str, object] = {}


class Fruit(StrEnum):
    """A choice."""

    APPLE = "apple"
    PEAR = "pear"


app = plain_app("kitchen", "A kitchen.")


@app.command()
def bake(
    what: str,
    set_: Annotated[list[str] | None, typer.Option("--set")] = None,
    heat: float = 1.0,
    count: Annotated[int, typer.Option(min=1)] = 1,
    colour: Literal["red", "green"] = "red",
    fruit: list[Fruit] | None = None,
    steam: Annotated[bool, typer.Option("--steam")] = False,
) -> None:
    """Bake [bold]it[/bold]."""
    taken.clear()
    taken.update(what=what, set=set_, heat=heat, count=count, colour=colour, fruit=fruit, steam=steam)


@app.command()
def burn(status: int = 0) -> None:
    """Go wrong."""
    if status == 130:
        raise KeyboardInterrupt
    if status == 2:
        raise DataError("is burnt", key="cake")
    raise typer.Exit(status)


def told(*words: str) -> str:
    with pytest.raises(ConfigError) as error:
        invoke(app, words, "python -m kitchen")
    return str(error.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--heat=-2.5", "cake"], {"heat": -2.5}),
        (["--heat", "-2.5", "cake"], {"heat": -2.5}),
        (["cake", "--set", "a=1", "--set=b=--x", "--set", "-c=d"], {"set": ["a=1", "b=--x", "-c=d"]}),
        (["--steam", "--", "--heat"], {"what": "--heat", "steam": True}),
        (["a cake"], {"what": "a cake"}),
        ([os.fsdecode(b"caf\xe9"), "--set", os.fsdecode(b"a=\xe9")], {"what": "caf\udce9", "set": ["a=\udce9"]}),
        (["@file"], {"what": "@file"}),
        (["cake", "--colour", "green", "--colour", "red"], {"colour": "red"}),
        (["cake", "--fruit", "pear", "--fruit", "apple"], {"fruit": ["pear", "apple"]}),
    ],
)
def test_what_words_may_be(words: list[str], expected: dict[str, object]) -> None:
    assert invoke(app, ["bake", *words], "kitchen") == 0
    assert {name: taken[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bake"], "WHAT: is required (python -m kitchen bake --help says more)"),
        (
            ["bake", "a", "--hea"],
            '--hea: no such option; did you mean "--heat"? (python -m kitchen bake --help lists them)',
        ),
        (["bake", "a", "--zz"], "--zz: no such option (python -m kitchen bake --help lists them)"),
        (["bake", "a", "-x\n"], "-x: no such option (python -m kitchen bake --help lists them)"),
        (["bake", "a", "--x\n\x1b[31m"], "--x\\n\\x1b[31m: no such option (python -m kitchen bake --help lists them)"),
        (["bake", "a", "--heat"], "--heat: requires an argument"),
        (["bake", "a", "--steam=1"], "--steam: does not take a value"),
        (["bake", "a", "--colour", "rde"], "--colour: 'rde' is not one of 'red', 'green'"),
        (["bake", "a", "--fruit", "rde"], "--fruit: 'rde' is not one of 'apple', 'pear'"),
        (
            ["bake", "a", "b", "c"],
            "got unexpected extra argument(s) (b c) (python -m kitchen bake --help says what it takes)",
        ),
        (["brun"], 'brun: no such command; did you mean "burn"? (python -m kitchen --help lists them)'),
        (["it's"], "it's: no such command (python -m kitchen --help lists them)"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str) -> None:
    assert told(*words) == message


@pytest.mark.parametrize(("option", "value"), [("--heat", "hot"), ("--count", "1.5"), ("--count", "0")])
def test_a_value_that_is_wrong_is_in_the_message(option: str, value: str) -> None:
    message = told("bake", "a", option, value)
    assert message.startswith(f"{option}: ") and value in message and "\n" not in message


def test_help_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(app, ["bake", "--help"], "kitchen") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "Bake [bold]it[/bold]." in said.out


def test_no_command_at_all_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(app, [], "kitchen") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Usage: kitchen [OPTIONS] COMMAND") and "burn" in said.err


def test_how_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(app, ["burn", "--status", "143"], "kitchen") == 143
    with pytest.raises(KeyboardInterrupt):
        invoke(app, ["burn", "--status", "130"], "kitchen")
    with pytest.raises(DataError, match="cake: is burnt"):
        invoke(app, ["burn", "--status", "2"], "kitchen")
    said = {2: "kitchen: error: cake: is burnt\n", 130: "kitchen: interrupted\n", 143: ""}
    for status, message in said.items():
        with pytest.raises(SystemExit) as end:
            run(app, ["burn", "--status", str(status)], "python -m kitchen")
        assert end.value.code == status
        assert capsys.readouterr().err == message
    run(app, ["burn"], "kitchen")

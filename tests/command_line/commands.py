"""Every command that there is, and its parameters, without carrying it out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import typer

from flows.cli import app
from flows.commands.jobs import SUMMARIES

Path = tuple[str, ...]


def job_app(name: str) -> typer.Typer:
    """The app of a command of evo_core."""
    return import_module(f"evo_core.{name}.command").app


def cli(program: typer.Typer) -> Any:
    """The command line of an app."""
    return typer.main.get_command(program)


def commands() -> Iterator[tuple[Path, typer.Typer, Path]]:
    """(as typed under evo, the app that reads the words, the words before its options) of every command."""
    for name, command in cli(app).commands.items():
        if name in SUMMARIES:
            yield ("evo", name), job_app(name), ()
        elif hasattr(command, "commands"):
            yield from ((("evo", name, sub), app, (name, sub)) for sub in command.commands)
        else:
            yield ("evo", name), app, (name,)


def parameters(program: typer.Typer, words: Sequence[str]) -> list[Any]:
    """The parameters of the command that words name."""
    command = cli(program)
    for word in words:
        command = command.commands[word]
    return command.params


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The parameters that a line beginning with `evo` gives its command, which is not carried out."""
    _, name, *rest = words
    command, shown = (cli(job_app(name)), name) if name in SUMMARIES else (cli(app).commands[name], name)
    while hasattr(command, "commands"):
        shown, *rest = rest
        command = command.commands[shown]
    return command.make_context(shown, list(rest)).params

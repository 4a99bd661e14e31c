"""A command line carried out: from a typer app and words to an exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from evo_core.command_line.mistakes import UsageError, mistake, shows_help
from evo_core.job import USER_ERROR, command

_HELP_OPTIONS = ["-h", "--help"]


def plain_app(name: str | None = None, summary: str | None = None, below: str | None = None) -> typer.Typer:
    """An app whose help and errors are plain text, on a terminal and in a log alike.

    Args:
        name: of a group of commands, as typed.
        summary: its line in the help.
        below: what the help ends with.
    """
    return typer.Typer(
        name=name,
        help=summary,
        epilog=below,
        no_args_is_help=name is not None,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def invoke(app: typer.Typer, words: Sequence[str], program: str) -> int:
    """Carry out a command line and return its exit status.

    Not by calling the app, which would end the process, print errors of its own form and turn Ctrl-C into a silent end.

    Args:
        words: what was typed after the program's name.
        program: what was typed to start it, for ``Usage: …``.

    Raises:
        ConfigError: the words are not what the command takes.
    """
    cli = typer.main.get_command(app)
    try:
        with cli.make_context(program, list(words), help_option_names=_HELP_OPTIONS) as context:
            cli.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except UsageError as error:
        if shows_help(error):
            print(error, file=sys.stderr)
            return USER_ERROR
        raise mistake(error) from None
    return 0


def run(app: typer.Typer, words: Sequence[str] | None, program: str, *, name: str | None = None) -> None:
    """Carry out the command line of a launched command, in the frame of one (`evo_core.job.command`).

    Args:
        words: default those that this process was started with.
        program: as typed: ``python -m evo_core.train``, ``evo train``.
        name: of the command in its messages; default the program's, without ``python -m``.

    Raises:
        SystemExit: with the status, where it is not 0.
    """
    with command(name or program.removeprefix("python -m ")):
        status = invoke(app, sys.argv[1:] if words is None else words, program)
    if status:
        sys.exit(status)

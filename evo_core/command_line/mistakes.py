"""Mistakes on a command line, told as every other mistake: in one line, with the option and what to do."""

from __future__ import annotations

import re
from typing import Any

import typer

from evo_core.errors import ConfigError, printable

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What the library raises for words that a command does not take. It exports by name only this one kind of it."""


def shows_help(error: Any) -> bool:
    """Whether the error is that a group of commands was called without one: then it holds the help."""
    return error.ctx is not None and error.format_message() == error.ctx.get_help()


def mistake(error: Any) -> ConfigError:
    """The library's error as ours: ``--confg: no such option; did you mean "--config"? (… --help lists them)``."""
    option, param = getattr(error, "option_name", None), getattr(error, "param", None)
    if hasattr(error, "possibilities") and option is not None:
        return _unknown(option, _options(error.ctx.command), "option", error.ctx)
    if option is not None:  # "Option '--seed' requires an argument."
        return ConfigError(_sentence(error.message.removeprefix(f"Option {option!r} ")), key=option)
    if param is not None and not error.message:
        return ConfigError("is required", key=_name(param), hint=_help_of(error.ctx, "says more"))
    if param is not None:
        return ConfigError(_sentence(_about_the_value(error)), key=_name(param))
    if unknown := re.match(r"No such command (['\"])(.*?)\1\.?(?= Did you mean|$)", error.message, re.DOTALL):
        return _unknown(unknown[2], error.ctx.command.commands, "command", error.ctx)
    return ConfigError(_sentence(error.format_message()), hint=_help_of(error.ctx, "says what it takes"))


def _about_the_value(error: Any) -> str:
    """Newer releases of the library check values by pydantic, whose sentences leave out what was given."""
    text = error.message.removeprefix("Value error, ")
    if not text.startswith("Input should be") or not hasattr(error.__cause__, "errors"):
        return text
    given = error.__cause__.errors()[0]["input"]
    return f"{given!r}{text.removeprefix('Input').partition(', unable to parse')[0]}"


def _unknown(given: str, known: Any, what: str, context: Any) -> ConfigError:
    from evo_core.config.suggest import suggest

    begun = [name for name in known if name.startswith(given)]  # an abbreviation, which argparse would take
    meant = f'; did you mean "{begun[0]}"?' if len(begun) == 1 else suggest(given, known)
    return ConfigError(f"no such {what}{meant}", key=printable(given), hint=_help_of(context, "lists them"))


def _options(cli: Any) -> list[str]:
    shown = [param for param in cli.params if not getattr(param, "hidden", False) and param.opts[0].startswith("-")]
    return [name for param in shown for name in (*param.opts, *param.secondary_opts)] + ["--help"]


def _name(param: Any) -> str:
    """The parameter as a person knows it: ``--seed``, ``CHECKPOINT``."""
    if param.opts[0].startswith("-"):
        return param.opts[0]
    return (param.metavar or param.name).rstrip(".").upper()


def _sentence(text: str) -> str:
    """The library's sentence as a part of ours."""
    text = printable(" ".join(text.split())).removesuffix(".")
    return text[:1].lower() + text[1:]


def _help_of(context: Any, what: str) -> str | None:
    return None if context is None else f"{context.command_path} --help {what}"

"""`evo train`, `evaluate`, `generate`, `serve`, `convert`, `inspect`, `estimate`, `parity`: commands of evo_core."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

SUMMARIES = {
    "train": "Train a model here and now, alone or as one of many ranks.",
    "evaluate": "Evaluate a model on held-out text and on task files.",
    "generate": "Let a model continue prompts.",
    "serve": "Serve a model: an OpenAI-compatible HTTP API and a page.",
    "convert": "Convert weights from one system's format to another's.",
    "inspect": "Show which checkpoints there are, and what is behind each.",
    "estimate": "Say what a job needs, and find the layouts worth having.",
    "parity": "Show that layouts of several ranks train as one process does.",
}
"""What the list of commands says of each; kept here as their modules are not imported for it."""


class CoreCommand(TyperCommand):
    """Imports the command of evo_core when it is called, and hands it what was typed after its name as it is: `--` and
    `--help` too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return ctx.args

    def invoke(self, ctx: Any) -> None:
        import_module(f"evo_core.{self.name}.command").main(ctx.args, ctx.command_path)


def add_jobs(app: typer.Typer) -> None:
    """Put the commands into the list of an app's."""
    for name, summary in SUMMARIES.items():
        app.command(name, cls=CoreCommand, help=summary)(_in_evo_core)


def _in_evo_core() -> None:
    """Stands for the function of a command that is not imported yet."""

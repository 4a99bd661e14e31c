"""A training configuration and what is laid over it: the options of every command that reads one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

ConfigFile = Annotated[
    str, typer.Option("--config", metavar="FILE", help="Training configuration, .yaml or .py.", show_default=False)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Lay a value over the file's: adam.lr=3e-4; repeatable."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="In place of the configuration's.")]


def overrides(set_: Sequence[str] | None, seed: int | None) -> list[str]:
    """The texts ``KEY=VALUE`` that `evo_core.config.load_config` takes; a --seed wins over a ``--set seed=…``."""
    return [*(set_ or []), *([] if seed is None else [f"seed={seed}"])]

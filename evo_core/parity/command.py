"""``evo parity``: whether layouts of several ranks train as one process does."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from evo_core.command_line.program import plain_app, run
from evo_core.command_line.several_words import name_before_each
from evo_core.errors import ConfigError

if TYPE_CHECKING:
    from evo_core.parity.cut_down import CutDown
    from evo_core.parity.layouts import Row

MISS = 1
"""Exit status where a layout does not train as one process does."""

app = plain_app()


class _ParityCommand(TyperCommand):
    """Takes several words after one --layouts."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(name_before_each(args, "--layouts")))


@app.command(cls=_ParityCommand)
def parity_command(
    ranks: Annotated[
        int | None, typer.Option(metavar="N", help="2 or 4 processes. [default: as the layouts' names say, else 2]")
    ] = None,
    layouts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME…",
            help="all, names (mtp2, fsp2-dp2-zero2) or patterns ('msp*'); several words. [default: all]",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A training configuration, .yaml or .py, whose model and layout are tried."),
    ] = None,
    dtype: Annotated[
        Literal["float64", "float32", "bfloat16"], typer.Option(help="In which both sides compute.")
    ] = "float64",
    list_: Annotated[bool, typer.Option("--list", help="Show the layouts of so many ranks and end.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object in the end.")] = False,
) -> None:
    """Show that layouts of several ranks train as one process does.

    A small model is trained for five steps at each layout, on the CPUs of this machine, and for as many on one process.
    Loss, norm and every gradient of every step are compared. With --config it is your model, made smaller.

    The exit status is 1 where a layout deviates or fails, 2 where the input is wrong.
    """
    if int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) != 0:
        return  # one process starts the ranks, whatever started it
    from evo_core.parity.layouts import ROWS, SIZES, chosen, ranks_of, rows_of_own

    words = layouts or ["all"]
    ranks = ranks_of(words) if ranks is None else ranks
    if ranks not in SIZES:
        raise ConfigError(f"there are layouts of 2 and of 4 ranks, not of {ranks}", key="--ranks")
    small = None if config is None else _small(config, ranks)
    of_own = None if small is None else (small.row, *rows_of_own(small.settings["model"]["num_experts"]))
    rows = chosen(words, ranks, of_own or ROWS)
    if list_:
        print("\n".join(row.name for row in rows))
        return
    if not _equal(ranks, dtype, small, rows, words, as_json=json_):
        raise typer.Exit(MISS)


def main(words: Sequence[str] | None = None, program: str = "python -m evo_core.parity") -> None:
    """Carry out a command line; exits with 1 where a layout deviates, with 2 for a mistake of the user's."""
    run(app, words, program)


def _small(config: str, ranks: int) -> CutDown:
    from evo_core.config import load_config
    from evo_core.parity.cut_down import cut_down

    return cut_down(load_config(config), ranks)


def _equal(
    ranks: int, dtype: str, small: CutDown | None, rows: Sequence[Row], named: Sequence[str], *, as_json: bool
) -> bool:
    """Run the rows and print what comes of each; tell whether all are equal.

    Args:
        small: the user's job; None is the one that is shipped.
        named: the words that were given for the rows; one that is no name is a pattern.
    """
    from evo_core.config.resolve import merge
    from evo_core.job import report_progress
    from evo_core.parity.job import small_model, training, write_documents
    from evo_core.parity.matrix import Matrix
    from evo_core.parity.show import Table, as_data, summary

    model, notes = (small_model(), []) if small is None else (small.settings, list(small.notes))
    results = []
    with tempfile.TemporaryDirectory(prefix="evo-parity-") as folder:
        write_documents(Path(folder), model["model"]["vocab_size"])
        with Matrix(ranks, merge(training(Path(folder)), model), dtype) as matrix:
            rows, left_out = matrix.legal(rows, named)
            notes += left_out
            table, coming = Table(rows), matrix.results(rows)
            say = (lambda line: None) if as_json else partial(print, flush=True)
            say("\n".join([*notes, table.head()]))
            for result in coming:
                results.append(result)
                say(table.line(result))
                report_progress(len(results), len(rows), "layouts")
            say(summary(results, dtype))
    if as_json:
        print(json.dumps(as_data(results, dtype, notes), indent=1))
    return all(result.equal for result in results)

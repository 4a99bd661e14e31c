"""``evo inspect FOLDER``: the checkpoints in a save folder, or what is behind one of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from evo_core.command_line.program import plain_app, run

app = plain_app()


@app.command()
def inspect_command(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A save folder, or a checkpoint in it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Show which checkpoints there are, and what is behind each.

    Of a save folder every checkpoint, the newest first; of a checkpoint the code, the settings and the data that it was
    made by and from, and what its last step measured. Files are not read through: loading does that.
    """
    from evo_core.inspect.look import look
    from evo_core.inspect.show import facts_of, list_of

    found = look(folder)
    if as_json:
        data = [each.summary() for each in found] if isinstance(found, list) else found.record()
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        print(list_of(found) if isinstance(found, list) else facts_of(found))


def main(words: Sequence[str] | None = None, program: str = "python -m evo_core.inspect") -> None:
    """Carry out a command line; exits with 2 for a mistake of the user's."""
    run(app, words, program)

"""Entry point of ``python -m evo_core.data``."""

from evo_core.data.commands import app
from evo_core.job import command

if __name__ == "__main__":
    with command("evo_core.data"):
        app(prog_name="python -m evo_core.data")

"""Entry point of ``python -m evo_core.data``."""

from evo_core.command_line.program import run
from evo_core.data.commands import app

if __name__ == "__main__":
    run(app, None, "python -m evo_core.data")

"""``python -m evo_core.generate``."""

from evo_core.generate.command import main

main()

"""``python -m evo_core.convert``."""

from evo_core.convert.command import main

main()

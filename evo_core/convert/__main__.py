"""Entry point of ``python -m evo_core.convert``."""

from evo_core.convert.command import main

if __name__ == "__main__":
    main()

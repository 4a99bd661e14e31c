"""Entry point of ``python -m evo_core.generate``."""

from evo_core.generate.command import main

if __name__ == "__main__":
    main()

"""Entry point of ``python -m evo_core.evaluate``."""

from evo_core.evaluate.command import main

if __name__ == "__main__":
    main()

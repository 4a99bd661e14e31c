"""Entry point of ``python -m evo_core.train``."""

from evo_core.train.command import main

if __name__ == "__main__":
    main()

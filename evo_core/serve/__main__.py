"""Entry point of ``python -m evo_core.serve``."""

from evo_core.serve.command import main

if __name__ == "__main__":
    main()

"""Entry point of ``python -m evo_core.inspect``."""

from evo_core.inspect.command import main

if __name__ == "__main__":
    main()

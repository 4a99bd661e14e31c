"""``python -m evo_core.parity``."""

from evo_core.parity.command import main

if __name__ == "__main__":
    main()

"""``python -m evo_core.estimate``."""

from evo_core.estimate.command import main

if __name__ == "__main__":
    main()

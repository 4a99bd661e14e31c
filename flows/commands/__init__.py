"""The commands of `evo`, a group a file. What one needs is imported when it is run: `evo --help` loads none of it."""

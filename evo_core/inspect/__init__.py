"""``evo inspect FOLDER`` and ``python -m evo_core.inspect``: which checkpoints there are, and what is behind each."""

"""Real text that is on this machine already, to try things with: `sample_text`, of which `python_source` is a part."""

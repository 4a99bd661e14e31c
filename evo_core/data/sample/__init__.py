"""Real text that is on this machine already."""

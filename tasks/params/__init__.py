"""Parameters that several kinds have: names, paths, durations."""

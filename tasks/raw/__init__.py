"""The raw files of a pipeline: which there are, and whether they are still what was listed."""

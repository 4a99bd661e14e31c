"""Shards opened for training: documents of each type at random access."""

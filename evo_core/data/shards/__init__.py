"""Token shards on disk: their format, their folders, and where each document came from."""

"""Token files to a dataset: shards by type with a held-out part, made anew where files changed."""

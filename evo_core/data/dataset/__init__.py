"""Token files to a version of a dataset: shards by type with a held-out part, made anew only where files changed.

The way of `build.write_shards`: `scan` reads each token file once (lengths, held out or not, types by `routing`, which
may look into the text with `detect`, and fingerprints); `inventory` decides with `dedup` which documents are taken;
`shard_plan` says which shards of the `previous_version` stay and what is written; `writer` carries that out. Out come
``train/`` and ``valid/``, origins, the manifest ``statistics.json``, and what the next version starts from.
"""

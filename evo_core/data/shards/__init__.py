"""Token shards on disk, the contract between all that write tokens and all that read them.

`format` is one file: `.bin` (a JSON line a document) with `.bin.meta` (where each line starts), read and written.
`folder` is a folder of them, a sub-folder for each data type. Beside the tokens lie `document_types` (`.bin.types`:
which type each document's record named) and `origins` (``origins.json``: which raw file each document comes from, and
the one order of all documents). `targets` says whether there is anything in them to train on.
"""

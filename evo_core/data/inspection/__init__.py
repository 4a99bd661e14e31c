"""What is in token files. In: a path. Out: what a person wants to know of it.

`find` finds the files behind the path, `statistics` counts, `sample` reads one document as text, `verify` checks every
byte, `manifest` compares with ``statistics.json``, `targets` names the types of which nothing would be trained on.
"""

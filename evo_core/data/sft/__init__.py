"""Fine-tuning data. In: instructions or conversations. Out: token files in which only the answers are trained on.

`records` reads the files; `formats` finds a format by its name: `alpaca`, `chat` (by a Jinja template), `sharegpt`, or
a user's function. A format makes `pieces` of a record, some of them trained on; `encode` makes the ids of a sample of
them, `samples` does so for whole files on all cores, and `write` puts them into token files, split or not.
"""

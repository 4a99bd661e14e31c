"""Records of instructions and conversations to samples in which only the answers are trained on.

`formats` finds a format by name: `alpaca`, `chat` or a user's function. A format makes `pieces` of a record, `encode`
makes the ids of a sample of them, `write` turns files of records into token files.
"""

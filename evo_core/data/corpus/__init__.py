"""Shards opened for training. In: a folder of token shards. Out: the documents of each type at random access.

`corpus.open_corpus` is the way in. `token_cache` decodes each `.bin` once and maps it into memory ever after;
`document_set` is the documents of several files as one sequence, `random_data` counts up for runs without data. `index`
keeps what is worked out once a run (where documents lie, the orders of an epoch), for one process or shared by all of a
node.

`large.open_blocks` is the way in for more documents than are kept in memory: `blocks` of neighbours, whose `lengths`
are read from the metas when they are needed, `mapped_ids` of those files that are asked for, and `stored`, where what
was found out once outlives the process.
"""

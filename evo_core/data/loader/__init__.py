"""Documents to batches. In: a corpus, or a Hugging Face data set. Out: the batch of any step, drawn ahead of it.

`train_data` is the training data at random access by step: `order` (streams of documents cut into packs, and the order
of packs), `large_order` (the same for more documents than `scale` says), `mixing` (types by weights) or
`internevo_packing` (InternEvo's order) say which tokens, `packing` puts them into a pack, `batch` holds a rank's packs.
`hf_stream` reads a Hugging Face data set (opened by `hf_dataset`) from front to end instead, and keeps a data cursor.
`valid_data` is the held-out part; `prefetch` draws batches ahead, and `shared` has one rank read for all that need the
same batches.
"""

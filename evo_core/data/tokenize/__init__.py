"""Documents to token ids. In: raw files and a tokenizer. Out: a token file (`.bin`) for each, on many cores.

`tokenizer` is what every tokenizer does; `sentencepiece_tokenizer` and `hugging_face_tokenizer` are the two there are,
`tokenizer_settings` reads the files beside them, `tokenizers` opens either by its path, and `training` makes one.
`tokenize_file` does one raw file, or a range of it; `fan_out` cuts files into parts and spreads them over what
`executors` offers: a pool of processes here, or a Dask cluster.
"""

"""Documents to token ids. In: raw files and a tokenizer. Out: a token file (`.bin`) for each, on many cores.

`tokenizer` is what every tokenizer does; `sentencepiece_tokenizer` and `hugging_face_tokenizer` are the two there are,
`tokenizer_settings` reads the files beside them, `tokenizers` opens either by its path, and `training` makes one.
`tokenize_file` does one raw file, or a range of it; `parts` cuts many files into what one worker does at a time, and
`fan_out` spreads that over what `executors` offers: a pool of processes here, or a Dask cluster.
"""

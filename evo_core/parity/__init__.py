"""Layouts against one process: the same job at each, compared loss by loss and gradient by gradient.

What is compared is what trains: first weights from the seed, `TrainStep`, `Zero1AdamW`, the loader's batches. A layout
is a line in `layouts`; `measure` runs on the ranks and `whole` puts together what each of them has; `deviation` and
`diagnosis` are arithmetic on the result.
"""

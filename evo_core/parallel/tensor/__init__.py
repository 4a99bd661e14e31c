"""Tensor parallelism: layers of which each rank of the tensor axis holds a part, in the place of the decoder's own.

    exchange      what ranks send each other between layers that they share
    linear        cut by columns of the output (column), or by columns of the input (row)
    embedding     cut by hidden size, or by vocabulary
    head          cut by vocabulary, with its loss
    experts       a mixture whose experts are cut
    parts         makes these in the place of whole layers, and keeps the record
    own_type      what the class of a user's own model type cuts itself by
    pieces        where the parts of a parameter lie

Three modes exchange at the same places. mtp (Shoeybi et al. 2019, arXiv:1909.08053) keeps the residual stream whole on
every rank and sums with all-reduces. msp (Korthikanti et al. 2022, arXiv:2205.05198) keeps a part of the sequence on
each rank: what was an all-reduce is a reduce-scatter and an all-gather. fsp is msp that keeps only its own part of a
layer's input for the backward pass, and gathers it again there.
"""

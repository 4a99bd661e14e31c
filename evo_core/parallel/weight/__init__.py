"""isp: each rank holds a part of every block's weights, and fetches whole ones when it uses them.

    gathering     which weights are under way, and when; what of their gradients is
    buffers       memory for whole weights
    linear        a layer whose weight is fetched
    attention     all of the sequence for some heads
    experts       a mixture whose experts are fetched
    blocks        puts these in the place of a decoder's own

The residual stream is cut by rows over the tensor axis, as in msp; but nothing that a block computes is cut by
features, so between the layers of a block only attention exchanges anything (Jacobs et al. 2023, DeepSpeed-Ulysses,
arXiv:2309.14509). Weights are cut over the weight axis, of another size. What is fetched is dropped after use, as in
ZeRO's third stage (Rajbhandari et al. 2020); Chen et al. 2024 (InternEvo, arXiv:2401.09149) put the two together.
"""

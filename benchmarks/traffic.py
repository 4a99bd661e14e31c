"""What ranks that share a model send, by formula, and what they keep for the backward pass, by measurement.

`sent` (tensor parallelism), `sent_by_isp` and `handed_on` (a pipeline) are the formulas, against which tests and
benchmarks/parallel.py hold what is counted: see docs/parallelism.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from evo_core.config import ModelConfig
from evo_core.parallel.pipeline.placing import Placing

#: Numbers of float32 or wider that each part of a vocabulary tells the others of a token, for the loss.
KNOWN_OF_A_TOKEN = 5


def sent(cfg: ModelConfig, mode: str, ranks: int, tokens: int, *, element: int) -> Counter[str]:
    """Bytes that each rank sends in the forward and backward pass of one micro-batch, by collective.

    With n ranks an all-reduce of a tensor is counted as ``2 (n - 1) / n`` of its bytes, an all-gather, a reduce-scatter
    and an all-to-all as ``(n - 1) / n`` of the whole one's. A block that is recomputed sends its forward's again, but
    for what comes out of the MLP, where nothing of the block is computed with it (a norm, dropout). Not in it: the
    gradients of what is whole on every rank, which are summed once a step.

    Args:
        cfg: of a decoder without experts, trained with labels.
        mode: mtp, msp or fsp.
        ranks: of the tensor axis.
        tokens: of the micro-batch.
        element: bytes of a number in the model's dtype.
    """
    stream = tokens * cfg.hidden_size * element  # the residual stream, whole
    entered = left = 2 * 2 * cfg.num_layers  # attention and MLP of each block; backward is forward the other way round
    if mode == "fsp":
        entered += 2 * cfg.num_layers
    again = recomputed(cfg)
    entered += 2 * again
    left += 2 * again if cfg.apply_post_layer_norm or cfg.drop_rate else again
    whole = _sent_at_ends(cfg, ranks, tokens, element, by_rows=mode != "mtp")
    if mode == "mtp":
        whole["all_reduce"] += left * stream
    else:
        whole += Counter(all_gather=entered * stream, reduce_scatter=left * stream)
    return _as_rings(whole, ranks)


def sent_by_isp(cfg: ModelConfig, tensor: int, weight: int, tokens: int, *, element: int) -> dict[str, Counter[str]]:
    """The same of isp: ``weights`` of the blocks and their gradients, ``attention``, and ``ends``, which are embedding,
    head and loss. What is recomputed sends no weight again.

    Args:
        cfg: of a decoder without experts, trained with labels.
        tensor: ranks that share the sequence.
        weight: ranks that share each weight.
        tokens: of the micro-batch.
        element: bytes of a number in the model's dtype.
    """
    heads, kv_heads = cfg.num_attention_heads, max(cfg.num_kv_attention_heads, tensor)
    numbers = numbers_of_blocks(cfg)
    weights = Counter(all_gather=2 * numbers * element, reduce_scatter=numbers * max(element, 4))
    # Each rank has its rows of all heads, then all rows of its heads: q, k and v, and what attention makes of them.
    exchanged = tokens // tensor * (2 * heads + 2 * kv_heads) * cfg.head_dim * element
    attention = Counter(all_to_all=(2 * cfg.num_layers + recomputed(cfg)) * exchanged)
    ends = _sent_at_ends(cfg, tensor, tokens, element, by_rows=True)
    return {
        "weights": _as_rings(weights, weight),
        "attention": _as_rings(attention, tensor),
        "ends": _as_rings(ends, tensor),
    }


def numbers_of_blocks(cfg: ModelConfig) -> int:
    """Elements of weights and biases of the linear layers of all blocks, without experts."""
    heads, kv_heads = cfg.num_attention_heads * cfg.head_dim, cfg.num_kv_attention_heads * cfg.head_dim
    inner, bias = cfg.mlp_hidden_size, not cfg.no_bias
    attention = (cfg.hidden_size + bias) * (heads + 2 * kv_heads) + (heads + bias) * cfg.hidden_size
    return cfg.num_layers * (attention + (3 if cfg.use_swiglu else 2) * cfg.hidden_size * inner)


def recomputed(cfg: ModelConfig) -> int:
    """Blocks that run again in the backward pass."""
    return int(cfg.num_layers * float(cfg.checkpoint))


def _sent_at_ends(cfg: ModelConfig, ranks: int, tokens: int, element: int, *, by_rows: bool) -> Counter[str]:
    """Bytes of whole tensors that are exchanged over the tensor axis before the first block and behind the last.

    Args:
        by_rows: each rank holds some rows of the residual stream; else all.
    """
    stream, wide = tokens * cfg.hidden_size * element, max(element, 4)
    by_hidden = cfg.embed_split_hidden and not cfg.tie_word_embeddings
    if not by_rows:
        whole = Counter(all_reduce=stream)  # the gradient of the head's input
        whole["all_gather" if by_hidden else "all_reduce"] += stream
    else:
        both_ways = Counter(all_gather=stream, reduce_scatter=stream)
        whole = both_ways + (Counter(all_to_all=2 * stream // ranks) if by_hidden else both_ways)
    if cfg.parallel_output:
        whole["all_gather"] += ranks * KNOWN_OF_A_TOKEN * tokens * wide
    else:
        whole["all_gather"] += tokens * cfg.vocab_size * wide
    return whole


def _as_rings(whole: Counter[str], ranks: int) -> Counter[str]:
    """What a rank sends of whole tensors."""
    share = {"all_reduce": 2 * (ranks - 1)}
    return +Counter({name: share.get(name, ranks - 1) * size // ranks for name, size in whole.items()})


def handed_on(cfg: ModelConfig, placing: Placing, rank: int, count: int, tokens: int, *, element: int) -> int:
    """Bytes that a rank of a pipeline sends in the forward and backward passes of a step.

    Each of its stages hands the hidden states of each micro-batch to the next one, and their gradient to the one
    before: a message where that is on another rank. With experts goes the balance loss, a number of float32 or wider.

    Args:
        cfg: of a decoder; its residual stream is in its dtype.
        rank: of the pipeline.
        count: of micro-batches.
        tokens: of each, those of this rank's rows.
        element: bytes of a number in the model's dtype.
    """
    beside = [(stage, stage + step) for stage in placing.stages_of(rank) for step in (1, -1)]
    messages = sum(0 <= other < placing.stages and placing.rank_of(other) != rank for _, other in beside)
    balance = max(element, 4) if cfg.num_experts > 1 else 0
    return messages * count * (tokens * cfg.hidden_size * element + balance)


def kept(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of memory that a forward pass keeps for the backward pass, the parameters' own apart.

    Args:
        forward: returns what the backward pass begins with.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    # The graph holds what is noted, so that no memory is given out twice while it is counted.
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        end = forward()
    total = sum(sizes.values())
    del end
    return total

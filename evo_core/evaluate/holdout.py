"""Held-out loss per data type: what a model thinks of text it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from evo_core.data import data_types, validation_batches
from evo_core.data.loader.shared import shared, shared_batches
from evo_core.evaluate.blocks import BLOCKS, block_sums, stderr
from evo_core.evaluate.perplexity import perplexity
from evo_core.model.evaluating import evaluating
from evo_core.parallel.collectives import broadcast

if TYPE_CHECKING:
    from evo_core.parallel.mesh import Axis

Score = dict[str, Any]


@torch.no_grad()
def holdout(
    model: nn.Module,
    folder: str | Path | None,
    *,
    seq_len: int,
    micro_bsz: int = 1,
    dp_rank: int = 0,
    dp_size: int = 1,
    group: dist.ProcessGroup | None = None,
    tensor: Axis | None = None,
    device: torch.device | str = "cpu",
    on_type: Callable[[int, int], None] | None = None,
    **reading: Any,
) -> dict[str, Score]:
    """Loss, perplexity and accuracy on every token of the held-out documents, by data type.

    With several ranks each reads its part, and all get the same result.

    Args:
        model: gives nll and hit for labels; it is left in the mode it was in.
        folder: one sub-folder of token shards for each type; None evaluates on random data.
        seq_len: longest context.
        micro_bsz: sequences' worth of tokens in one forward pass.
        dp_rank, dp_size: this rank's part.
        group: the ranks that share the work; None is the default group.
        tensor: the ranks that share each layer, and so go through the same batches, which the first of them reads; None
            where each has the whole model.
        device: of the model.
        on_type: called after each data type with the number done and all.
        reading: further arguments of `validation_batches` (mask_token_zero, vocab_size).

    Returns:
        ``{type: score}`` with a score's loss (nats per token), perplexity, acc and tokens; loss_stderr and acc_stderr,
        their standard errors with sequences taken as independent; and blocks, the sums that two models on the same
        text are compared by (see blocks.py). Types without targets are left out.

    Raises:
        DataError: the held-out documents are wrong; on every rank of `tensor`.
    """
    types = shared(lambda: data_types(folder), tensor)
    sums = torch.zeros(len(types), 3, BLOCKS, dtype=torch.float64, device=device)
    with evaluating(model):
        for number, name in enumerate(types):
            begin = partial(
                validation_batches,
                folder,
                name,
                seq_len=seq_len,
                micro_bsz=micro_bsz,
                dp_rank=dp_rank,
                dp_size=dp_size,
                **reading,
            )
            for batch in shared_batches(begin, tensor):
                batch = batch.to(device)
                for i in range(batch.micro_num):
                    output = model(batch.input_ids[i], batch.positions[i], batch.cu_seqlens[i], labels=batch.labels[i])
                    sums[number] += block_sums(
                        output.nll, output.hit, batch.labels[i], batch.input_ids[i], batch.cu_seqlens[i]
                    )
            if on_type is not None:
                on_type(number + 1, len(types))
    if dp_size > 1:
        dist.all_reduce(sums, group=group)
    if tensor is not None and tensor.size > 1:
        # Each token counts once: what the first tensor rank has found is the result.
        broadcast(sums, 0, tensor.group).wait()
    return {name: score(*rows) for name, rows in zip(types, sums.tolist(), strict=True) if sum(rows[2]) > 0}


def score(nll: list[float], hits: list[float], targets: list[float]) -> Score:
    """The score of one data type from its sums by block."""
    loss, tokens = sum(nll) / sum(targets), sum(targets)
    return {
        "loss": loss,
        "perplexity": perplexity(loss),
        "acc": sum(hits) / tokens,
        "tokens": int(tokens),
        "loss_stderr": stderr(nll, targets),
        "acc_stderr": stderr(hits, targets),
        "blocks": {"nll": nll, "hits": hits, "targets": targets},
    }

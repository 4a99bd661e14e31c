"""Held-out loss per data type: what a model thinks of text it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from evo_core.data import data_types, validation_batches
from evo_core.train.metrics import perplexity, sums_by_type

Score = dict[str, float]


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
        device: of the model.
        on_type: called after each data type with the number done and all.
        reading: further arguments of `validation_batches` (mask_token_zero, vocab_size).

    Returns:
        ``{type: {"loss": nats per token, "perplexity", "acc", "tokens"}}``; types without targets are left out.
    """
    types = data_types(folder)
    sums = torch.zeros(3, len(types), dtype=torch.float64, device=device)
    training = model.training
    model.eval()
    for done, name in enumerate(types, 1):
        for batch in validation_batches(
            folder,
            name,
            seq_len=seq_len,
            micro_bsz=micro_bsz,
            dp_rank=dp_rank,
            dp_size=dp_size,
            **reading,
        ):
            batch = batch.to(device)
            for i in range(batch.micro_num):
                output = model(batch.input_ids[i], batch.positions[i], batch.cu_seqlens[i], labels=batch.labels[i])
                sums += sums_by_type(output.nll, output.hit, batch.labels[i], batch.type_ids[i], len(types))
        if on_type is not None:
            on_type(done, len(types))
    model.train(training)
    if dp_size > 1:
        dist.all_reduce(sums, group=group)
    return {name: score(*column) for name, column in zip(types, sums.T.tolist(), strict=True) if column[2] > 0}


def score(nll: float, hits: float, targets: float) -> Score:
    """The score of one data type from its sums."""
    loss = nll / targets
    return {"loss": loss, "perplexity": perplexity(loss), "acc": hits / targets, "tokens": int(targets)}

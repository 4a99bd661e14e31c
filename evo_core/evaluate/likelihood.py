"""How likely a model finds continuations: many short sequences, packed by length and shared out over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from evo_core.errors import DataError
from evo_core.model.evaluating import evaluating


class Continuation(NamedTuple):
    """Token ids to score, and those that they follow (at least one)."""

    context: Sequence[int]
    ids: Sequence[int]


class Likelihood(NamedTuple):
    """What a model thinks of a continuation: its log-probability in nats, and whether greedy decoding gives it."""

    log_probability: float
    is_greedy: bool


@torch.no_grad()
def likelihoods(
    model: nn.Module,
    continuations: Sequence[Continuation],
    *,
    max_length: int,
    pack_tokens: int = 8192,
    dp_rank: int = 0,
    dp_size: int = 1,
    group: dist.ProcessGroup | None = None,
    device: torch.device | str = "cpu",
    on_pack: Callable[[int, int], None] | None = None,
) -> list[Likelihood]:
    """Score every continuation given its context.

    Sequences of like length share a pack, without padding. The packs do not depend on the number of ranks, which
    only decides who computes which, so several ranks give the same figures as one; every rank gets them all.

    Args:
        model: gives nll and hit for labels; it is left in the mode it was in.
        max_length: tokens the model reads at once; of a longer sequence the beginning is left out.
        pack_tokens: tokens in one forward pass, unless a single sequence is longer.
        dp_rank, dp_size: this rank's part.
        group: the ranks that share the work; None is the default group.
        device: of the model.
        on_pack: called after each pack with the number done and all, of this rank.

    Returns:
        One for each continuation, in order.

    Raises:
        DataError: a continuation without tokens, without context, or longer than the model reads at once.
    """
    for number, (context, ids) in enumerate(continuations):
        if not context or not ids or len(ids) > max_length:
            what = "no context" if not context else "no tokens" if not ids else f"{len(ids)} tokens, above {max_length}"
            raise DataError(f"continuation {number} cannot be scored: it has {what}")
    sequences = [([*context, *ids])[-(max_length + 1) :] for context, ids in continuations]
    packs = _packs([len(sequence) - 1 for sequence in sequences], pack_tokens)
    own = packs[dp_rank::dp_size]
    found: dict[int, Likelihood] = {}
    with evaluating(model):
        for done, pack in enumerate(own, 1):
            found |= _score(model, [(i, sequences[i], len(continuations[i].ids)) for i in pack], device)
            if on_pack is not None:
                on_pack(done, len(own))
    if dp_size > 1:
        parts: list[dict[int, Likelihood]] = [{}] * dp_size
        dist.all_gather_object(parts, found, group=group)
        found = {number: result for part in parts for number, result in part.items()}
    return [found[number] for number in range(len(sequences))]


def _packs(lengths: Sequence[int], pack_tokens: int) -> list[list[int]]:
    """Numbers of sequences for each forward pass, the longest first."""
    packs: list[list[int]] = []
    filled = 0
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not packs or filled + lengths[number] > pack_tokens:
            packs.append([])
            filled = 0
        packs[-1].append(number)
        filled += lengths[number]
    return packs


def _score(
    model: nn.Module, pack: Sequence[tuple[int, Sequence[int], int]], device: torch.device | str
) -> dict[int, Likelihood]:
    """Results by number, of (number, sequence, scored tokens at its end) read in one packed sequence."""
    lengths = [len(sequence) - 1 for _, sequence, _ in pack]
    input_ids = torch.tensor([token for _, sequence, _ in pack for token in sequence[:-1]])
    labels = torch.full_like(input_ids, -100)
    end, spans = 0, []
    for (_, sequence, scored), length in zip(pack, lengths, strict=True):
        end += length
        labels[end - scored : end] = torch.tensor(sequence[len(sequence) - scored :])
        spans.append(slice(end - scored, end))
    positions = torch.cat([torch.arange(length) for length in lengths])
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    output = model(
        input_ids.to(device),
        positions.to(device),
        cu_seqlens.to(device),
        labels=labels.to(device),
        max_seqlen=max(lengths),
    )
    nll, hit = output.nll.double().cpu(), output.hit.cpu()
    return {
        number: Likelihood(-float(nll[span].sum()), bool(hit[span].all()))
        for (number, _, _), span in zip(pack, spans, strict=True)
    }

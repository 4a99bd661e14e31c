"""How likely a model finds continuations: many short sequences, packed by length and shared out over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from evo_core.errors import DataError
from evo_core.model.evaluating import evaluating
from evo_core.parallel.collectives import gather_objects
from evo_core.parallel.passes import MicroBatch, Passes, WholeModel, passes_of

if TYPE_CHECKING:
    from evo_core.model import ModelOutput
    from evo_core.parallel.mesh import Mesh


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
    mesh: Mesh | None = None,
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
        mesh: the ranks, every one of which must call it; None scores all on this one.
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
    own = packs if mesh is None else packs[mesh.data.rank :: mesh.data.size]
    if mesh is not None and mesh.copies_share_weights and len(packs) > len(own) * mesh.data.size:
        own = [*own, packs[-1]]  # a second time, so that there are as many passes on every copy
    passes = WholeModel(model) if mesh is None else passes_of(model, mesh)
    found: dict[int, Likelihood] = {}
    with evaluating(model):
        for start in range(0, len(own), passes.at_once):
            some = own[start : start + passes.at_once]
            found |= _score(
                passes, [[(i, sequences[i], len(continuations[i].ids)) for i in pack] for pack in some], device
            )
            if on_pack is not None:
                on_pack(start + len(some), len(own))
    for axis in () if mesh is None else (mesh.pipeline, mesh.data):
        if axis.size > 1:
            found = {number: one for part in gather_objects(found, axis.group) for number, one in part.items()}
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


class _Read(NamedTuple):
    """Sequences in one packed sequence, as a model reads it.

    Attributes:
        batch: the pack.
        spans: by number of a continuation, where its labels are.
    """

    batch: MicroBatch
    spans: dict[int, slice]

    @classmethod
    def of(cls, pack: Sequence[tuple[int, Sequence[int], int]], device: torch.device | str) -> _Read:
        """Of (number, sequence, scored tokens at its end)."""
        lengths = [len(sequence) - 1 for _, sequence, _ in pack]
        input_ids = torch.tensor([token for _, sequence, _ in pack for token in sequence[:-1]])
        labels = torch.full_like(input_ids, -100)
        end, spans = 0, {}
        for (number, sequence, scored), length in zip(pack, lengths, strict=True):
            end += length
            spans[number] = slice(end - scored, end)
            labels[spans[number]] = torch.tensor(sequence[len(sequence) - scored :])
        positions = torch.cat([torch.arange(length) for length in lengths])
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        more = {"labels": labels.to(device), "max_seqlen": max(lengths)}
        return cls(MicroBatch(input_ids.to(device), positions.to(device), cu_seqlens.to(device), more), spans)


def _score(
    passes: Passes, packs: Sequence[Sequence[tuple[int, Sequence[int], int]]], device: torch.device | str
) -> dict[int, Likelihood]:
    """Results by number, of packs of (number, sequence, scored tokens at its end); none where there are no outputs."""
    read = [_Read.of(pack, device) for pack in packs]
    found: dict[int, Likelihood] = {}

    def take(i: int, output: ModelOutput) -> None:
        assert output.nll is not None and output.hit is not None  # it was given labels
        nll, hit = output.nll.double().cpu(), output.hit.cpu()
        for number, span in read[i].spans.items():
            found[number] = Likelihood(-float(nll[span].sum()), bool(hit[span].all()))

    passes.forward(len(read), lambda i: read[i].batch, take)
    return found

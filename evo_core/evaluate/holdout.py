"""Held-out loss per data type: what a model thinks of text it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evo_core.data import Batch, data_types, validation_batches
from evo_core.data.loader.shared import shared, shared_batches
from evo_core.evaluate.blocks import BLOCKS, block_sums, stderr
from evo_core.evaluate.in_step import in_step
from evo_core.evaluate.perplexity import perplexity
from evo_core.model.evaluating import evaluating
from evo_core.parallel.collectives import broadcast, failing_together
from evo_core.parallel.passes import MicroBatch, Passes, WholeModel, passes_of
from evo_core.pulse import beat

if TYPE_CHECKING:
    from evo_core.model import ModelOutput
    from evo_core.parallel.mesh import Mesh

Score = dict[str, Any]


@torch.no_grad()
def holdout(
    model: nn.Module,
    folder: str | Path | None,
    *,
    seq_len: int,
    micro_bsz: int = 1,
    mesh: Mesh | None = None,
    passes: Passes | None = None,
    at_once: int | None = None,
    device: torch.device | str = "cpu",
    on_type: Callable[[int, int], None] | None = None,
    **reading: Any,
) -> dict[str, Score]:
    """Loss, perplexity and accuracy on every token of the held-out documents, by data type.

    Copies of the model share the documents. Of the ranks that hold a copy together the first one reads, and all get the
    same result.

    Args:
        model: gives nll and hit for labels; it is left in the mode it was in.
        folder: one sub-folder of token shards for each type; None evaluates on random data.
        seq_len: longest context.
        micro_bsz: sequences' worth of tokens in one forward pass.
        mesh: the ranks, every one of which must call it; None evaluates on this one alone.
        passes: those that the model is trained with; None takes the simplest ones for the mesh.
        at_once: batches that are handed to the stages of a pipeline together; None takes enough for all of them.
        device: of the model.
        on_type: called after each data type with the number done and all.
        reading: further arguments of `validation_batches` (mask_token_zero, vocab_size).

    Returns:
        ``{type: score}`` with a score's loss (nats per token), perplexity, acc and tokens; loss_stderr and acc_stderr,
        their standard errors with sequences taken as independent; and blocks, the sums that two models on the same
        text are compared by (see blocks.py). Types without targets are left out.

    Raises:
        DataError: the held-out documents are wrong; on every rank.
    """
    if passes is None:
        passes = WholeModel(model) if mesh is None else passes_of(model, mesh)
    types = _types(folder, mesh)
    sums = torch.zeros(len(types), 3, BLOCKS, dtype=torch.float64, device=device)
    with evaluating(model):
        for number, name in enumerate(types):
            begin = partial(validation_batches, folder, name, seq_len=seq_len, micro_bsz=micro_bsz, **reading)
            _read_through(sums[number], passes, at_once or passes.at_once, begin, mesh, (seq_len, micro_bsz))
            if on_type is not None:
                on_type(number + 1, len(types))
    if mesh is not None:
        _make_global(sums, mesh)
    return {name: score(*rows) for name, rows in zip(types, sums.tolist(), strict=True) if sum(rows[2]) > 0}


def _types(folder: str | Path | None, mesh: Mesh | None) -> tuple[str, ...]:
    """Those of the first copy of the model: another that has not all of them cannot read its text."""
    if mesh is None:
        return data_types(folder)
    return shared(lambda: shared(lambda: shared(lambda: data_types(folder), mesh.tensor), mesh.pipeline), mesh.data)


def _read_through(
    sums: Tensor,
    passes: Passes,
    at_once: int,
    begin: Callable[..., Iterator[Batch]],
    mesh: Mesh | None,
    shape: tuple[int, int],
) -> None:
    """Add the sums by block [3, BLOCKS] of a data type; every rank must call it.

    Args:
        begin: `validation_batches` of the type.
        shape: seq_len and micro_bsz.
    """
    if mesh is not None and mesh.copies_share_weights:
        empty = Batch.without_targets(1, shape[0] * shape[1], shape[0])
        batches = _batches(begin, mesh)
        for some in in_step(batches, at_once, empty=empty, copies=mesh.data, device=sums.device):
            _add(sums, passes, some)
        return
    # A copy whose text is wrong gives up as a whole, and tells the others when they have done their part.
    with failing_together(mesh.data.group) if mesh is not None else nullcontext():
        batches = _batches(begin, mesh)
        while some := list(islice(batches, at_once)):
            _add(sums, passes, some)


def _batches(begin: Callable[..., Iterator[Batch]], mesh: Mesh | None) -> Iterator[Batch]:
    """The batches of a copy of the model: its first stage's first rank reads, that stage gets them from it, and each
    rank of a later stage from the one that has its place in the first."""
    if mesh is None:
        return begin(dp_rank=0, dp_size=1)
    own = partial(begin, dp_rank=mesh.data.rank, dp_size=mesh.data.size)
    return shared_batches(lambda: shared_batches(own, mesh.tensor), mesh.pipeline)


def _add(sums: Tensor, passes: Passes, batches: list[Batch]) -> None:
    """Add the sums by block [3, BLOCKS] of some batches of one micro-batch; nothing where there are no outputs."""
    batches = [batch.to(sums.device) for batch in batches]

    def micro_batch(i: int) -> MicroBatch:
        batch = batches[i]
        more = {"labels": batch.labels[0]}
        return MicroBatch(batch.input_ids[0], batch.positions[0], batch.cu_seqlens[0], more)

    def take(i: int, output: ModelOutput) -> None:
        batch = batches[i]
        assert output.nll is not None and output.hit is not None  # it was given labels
        sums.add_(block_sums(output.nll, output.hit, batch.labels[0], batch.input_ids[0], batch.cu_seqlens[0]))

    passes.forward(len(batches), micro_batch, take)
    beat()


def _make_global(sums: Tensor, mesh: Mesh) -> None:
    """Add up what copies of the model have found, each token once, and tell it to every rank."""
    if mesh.data.size > 1:
        dist.all_reduce(sums, group=mesh.data.group)
    if mesh.tensor.size > 1:
        broadcast(sums, 0, mesh.tensor.group).wait()  # what the first tensor rank has found is the result
    if mesh.pipeline.size > 1:
        dist.all_reduce(sums, group=mesh.pipeline.group)  # there are zeros on ranks without outputs


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

"""What a training step is measured by: sums over its micro-batches and, in one message, over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from evo_core.evaluate.perplexity import perplexity
from evo_core.evaluate.sums import sums_by_group

if TYPE_CHECKING:
    from evo_core.model import ModelOutput

_STOP, _UNREAD, _STOP_FILE, _PAIRS, _LOSS, _MOE_LOSS, _EXPERTS, _MICRO_BATCHES, _NLL, _HITS, _TYPES = range(11)


class StepTotals:
    """Sums of one step, laid out as one vector so that a single all-reduce makes them global.

    Vector: how many ranks were told to stop, and how many could not read their batch; the number in the stop file; the
    pairs of a token and one that it sees; the loss, the experts' balance loss and how often there was one, the
    micro-batches with the sums of their means of negative log-likelihood and of hits, then negative log-likelihood [n],
    hits [n] and targets [n] of each of the n data types.

    The loss of a step is a mean over its micro-batches of their means over targets, as in InternEvo; ``acc`` and
    ``perplexity`` are of the same mean. A micro-batch without a target counts as 0 in it.

    Args:
        types: names of the data types, in the order of their ids.
        device: of the model.
    """

    def __init__(self, types: Sequence[str], device: torch.device) -> None:
        self.types = tuple(types)
        self.vector = torch.zeros(_TYPES + 3 * len(self.types), dtype=torch.float64, device=device)

    def tell(self, *, stop: bool, stop_file: int, unread: bool = False) -> None:
        """What this rank knows: it was told to stop; what its stop file says (0 on all ranks but one); it could not
        read its batch."""
        self.vector[_STOP], self.vector[_UNREAD], self.vector[_STOP_FILE] = float(stop), float(unread), float(stop_file)

    def add_pairs(self, pairs: int) -> None:
        """Add pairs of a token and one that it sees."""
        self.vector[_PAIRS] += float(pairs)

    def add_output(self, output: ModelOutput, labels: torch.Tensor, type_ids: torch.Tensor, micro_batches: int) -> None:
        """Add what the model gave for one of so many micro-batches; labels and type_ids are [T]."""
        assert output.loss is not None and output.nll is not None and output.hit is not None  # it was given labels
        self.add_loss(output.loss / micro_batches)
        if output.moe_loss is not None:
            self.add_moe_loss(output.moe_loss / micro_batches)
        self.add_tokens(output.nll, output.hit, labels, type_ids)

    def add_loss(self, loss: torch.Tensor) -> None:
        """Add a rank's share of the step's loss, a scalar."""
        self.vector[_LOSS] += loss.detach()

    def add_moe_loss(self, loss: torch.Tensor) -> None:
        """Add a rank's share of the balance loss of its experts, a scalar."""
        self.vector[_EXPERTS] += 1
        self.vector[_MOE_LOSS] += loss.detach()

    def add_tokens(self, nll: torch.Tensor, hit: torch.Tensor, labels: torch.Tensor, type_ids: torch.Tensor) -> None:
        """Add the targets of one micro-batch; all arguments are [T]."""
        sums = sums_by_group(nll, hit, labels, type_ids, len(self.types))
        self.vector[_TYPES:] += sums.view(-1)
        nll_sum, hits, targets = sums.sum(dim=1)
        self.vector[_MICRO_BATCHES] += 1
        self.vector[_NLL] += nll_sum / targets.clamp(min=1)
        self.vector[_HITS] += hits / targets.clamp(min=1)

    @property
    def stop(self) -> bool:
        """Whether any rank was told to stop."""
        return float(self.vector[_STOP]) > 0

    @property
    def unread(self) -> bool:
        """Whether any rank could not read its batch."""
        return float(self.vector[_UNREAD]) > 0

    @property
    def stop_file(self) -> int:
        """The number in the stop file."""
        return int(self.vector[_STOP_FILE])

    @property
    def loss(self) -> float:
        """The sum of all ranks' losses."""
        return float(self.vector[_LOSS])

    @property
    def pairs(self) -> float:
        """Of all ranks."""
        return float(self.vector[_PAIRS])

    def moe(self, dp: int) -> dict[str, float]:
        """``moe_loss``, the mean over ``dp`` ranks of the balance losses, of a model that has experts."""
        return {"moe_loss": float(self.vector[_MOE_LOSS]) / dp} if self.vector[_EXPERTS] else {}

    def quality(self) -> dict[str, float]:
        """``acc`` and ``perplexity`` of the step; ``loss/``, ``acc/`` and ``tokens/`` over all targets of each type."""
        micro_batches, mean_nll, mean_hits = self.vector[_MICRO_BATCHES:_TYPES].tolist()
        nll, hits, targets = self.vector[_TYPES:].view(3, -1).tolist()
        result = {
            "acc": mean_hits / max(micro_batches, 1),
            "perplexity": perplexity(mean_nll / max(micro_batches, 1)),
        }
        for name, n, h, t in zip(self.types, nll, hits, targets, strict=True):
            if t:
                result |= {f"loss/{name}": n / t, f"acc/{name}": h / t, f"tokens/{name}": int(t)}
        return result


def segments(cu_seqlens: Sequence[torch.Tensor]) -> dict[str, int]:
    """How a step's micro-batches are cut into documents, on this rank.

    Args:
        cu_seqlens: of each micro-batch [documents + 1], where its documents begin and end.

    Returns:
        ``num_samples_in_batch``: documents in all; ``largest_length``: tokens of the longest; ``largest_batch`` and
        ``smallest_batch``: most and fewest documents in one micro-batch.
    """
    counts = [len(offsets) - 1 for offsets in cu_seqlens]
    return {
        "num_samples_in_batch": sum(counts),
        "largest_length": max(int(offsets.diff().max()) for offsets in cu_seqlens),
        "largest_batch": max(counts),
        "smallest_batch": min(counts),
    }


def visible_pairs(cu_seqlens: Sequence[torch.Tensor]) -> int:
    """The pairs of a token and one that it sees, itself among them: l (l + 1) / 2 of a document of l tokens."""
    lengths = torch.cat([offsets.diff() for offsets in cu_seqlens]).to(torch.int64)
    return int((lengths * (lengths + 1) // 2).sum())

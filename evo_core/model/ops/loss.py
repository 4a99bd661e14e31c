"""Output projection and cross-entropy in one, a few rows at a time.

The logits of a whole sequence are the largest tensor of a language model (T x vocabulary); here only one
chunk of rows exists at any moment. A chunk's gradient is formed right after its loss, while its logits are at
hand, so the backward pass only scales what is already there.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_core.model.dtypes import accumulation_dtype, product_dtype
from evo_core.model.ops.cache_rows import on_a_cpu

IGNORE_INDEX = -100

#: Rows of logits at once: at least this many, and up to so many elements. Measured on a CPU with vocabularies of
#: 4096 to 32000: fewer rows spend their time on adding up the weight's gradient.
_LEAST_ROWS = 256
_ELEMENTS_ON_A_CPU, _ELEMENTS_ON_A_GPU = 2**21, 2**27


class VocabularyPart(Protocol):
    """Where a weight's rows are among those of the whole vocabulary, the others being on other ranks.

    Attributes:
        first: id of the first row.
        size: ids of the whole vocabulary.
        gathers_logits: whether each rank forms the softmax of all logits, else of its own, and what is known of a row
            is put together.
    """

    first: int
    size: int
    gathers_logits: bool

    def stacked(self, x: Tensor) -> Tensor:
        """What every part has in place of x [...], in their order: [parts, ...]."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    chunk_rows: int | None = None,
    part: VocabularyPart | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of ``hidden @ weight.T`` against labels, without ever holding all logits.

    With p = softmax(logits) the smoothed loss of a row is
    ``-(1 - s) log p[label] - s / V * sum_j log p[j]`` (arXiv:1512.00567), as torch's cross_entropy.

    Args:
        hidden: [T, H].
        weight: [V, H] of the same dtype.
        labels: [T] int64; -100 is ignored.
        label_smoothing: s in [0, 1).
        chunk_rows: rows of logits at once; chosen by device and V when None.
        part: which rows of the whole weight these are, where others are elsewhere. All ranks get the loss of the whole
            vocabulary; the gradient of `hidden` is what these rows add to it, and the sum over parts is the whole one.

    Returns:
        loss: scalar, the mean over labels that are not ignored (0 if there are none), differentiable.
        nll: [T], ``-log p[label]`` without smoothing; 0 where ignored.
        hit: [T] bool, whether the largest logit is the label's; False where ignored.
        loss and nll have float32 or, for float64 input, float64.
    """
    elements = _ELEMENTS_ON_A_CPU if on_a_cpu(hidden) else _ELEMENTS_ON_A_GPU
    # With all logits at once on each rank a row is as long as the vocabulary; all parts must take the same rows.
    longest = part.size if part is not None and part.gathers_logits else weight.shape[0]
    rows = chunk_rows or max(_LEAST_ROWS, elements // longest)
    with_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, labels, label_smoothing, rows, with_gradient, part)


class _Softmax(NamedTuple):
    """What the logits of some rows come to, with V ids here.

    Attributes:
        exponent: [rows, V], what is left of the logits; divided by `normaliser` [rows, 1] their probabilities.
        log_normaliser: [rows], log of the sum of exp over the whole vocabulary.
        at_target: [rows], the label's logit.
        mean_logit: [rows], of all logits; None without smoothing.
        hit: [rows] bool.
    """

    exponent: Tensor
    normaliser: Tensor
    log_normaliser: Tensor
    at_target: Tensor
    mean_logit: Tensor | None
    hit: Tensor


def _softmax(logits: Tensor, target: Tensor, smoothing: float) -> _Softmax:
    """Of whole rows: logits [rows, V], which are overwritten, and the id of each label [rows, 1]."""
    highest, argmax = logits.max(dim=-1, keepdim=True)
    at_target = logits.gather(1, target).squeeze(1)
    mean_logit = logits.mean(dim=-1) if smoothing else None
    # In place: what was logits is probabilities from here on, and their gradient after that.
    exponent = logits.sub_(highest).exp_()
    normaliser = exponent.sum(dim=-1, keepdim=True)
    log_normaliser = (highest + normaliser.log()).squeeze(1)
    return _Softmax(exponent, normaliser, log_normaliser, at_target, mean_logit, (argmax == target).squeeze(1))


def _softmax_of_parts(logits: Tensor, target: Tensor, here: Tensor, smoothing: float, part: VocabularyPart) -> _Softmax:
    """The same where the columns are a part of the vocabulary: target counts from its first id, and is any id where
    `here` [rows, 1] says that the label is in another part. What each part knows travels in one message."""
    highest, argmax = logits.max(dim=-1)
    at_target = logits.gather(1, target).squeeze(1) * here.squeeze(1)
    total = logits.sum(dim=-1) if smoothing else torch.zeros_like(highest)
    exponent = logits.sub_(highest[:, None]).exp_()
    # A label is hit where its part has the highest logit; of equal ones the first part's counts.
    is_hit = ((argmax[:, None] == target) & here).squeeze(1).to(highest.dtype)
    known = part.stacked(torch.stack([highest, exponent.sum(dim=-1), at_target, total, is_hit]))
    everywhere, sums, at_targets, totals, hits = known.unbind(1)
    top, best = everywhere.max(dim=0)
    normaliser = (sums * (everywhere - top).exp()).sum(0)
    return _Softmax(
        exponent,
        (normaliser * (top - highest).exp())[:, None],
        top + normaliser.log(),
        at_targets.sum(0),
        totals.sum(0) / part.size if smoothing else None,
        hits.gather(0, best[None]).squeeze(0) > 0,
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        smoothing: float,
        chunk_rows: int,
        with_gradient: bool,
        part: VocabularyPart | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = accumulation_dtype(hidden.dtype)
        own, first = weight.shape[0], 0 if part is None else part.first
        vocabulary = own if part is None else part.size
        begin = first if part is not None and part.gathers_logits else 0  # of these rows' columns among the logits
        valid = labels != IGNORE_INDEX
        targets = labels.masked_fill(~valid, 0)
        total = torch.zeros((), device=hidden.device, dtype=wide)
        nll = torch.empty(labels.shape, device=hidden.device, dtype=wide)
        hit = torch.empty(labels.shape, device=hidden.device, dtype=torch.bool)
        d_hidden = torch.empty_like(hidden) if with_gradient else None
        d_weight = torch.zeros(weight.shape, device=weight.device, dtype=wide) if with_gradient else None

        multiplied_in = product_dtype(hidden.dtype, hidden.device.type)
        factor = weight.to(multiplied_in)
        for start in range(0, labels.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            # 1 or 0 in the wide type: a bool times a Python number would be float32 even beside float64.
            x, target, live = hidden[rows].to(multiplied_in), targets[rows, None], valid[rows].to(wide)
            logits = F.linear(x, factor).to(wide)
            here: Tensor | None = None
            if part is None:
                row = _softmax(logits, target, smoothing)
            elif part.gathers_logits:
                row = _softmax(part.stacked(logits).movedim(0, 1).flatten(1), target, smoothing)
            else:
                here = (target >= first) & (target < first + own)
                target = (target - first).masked_fill(~here, 0)
                row = _softmax_of_parts(logits, target, here, smoothing, part)

            nll[rows] = (row.log_normaliser - row.at_target) * live
            hit[rows] = row.hit & valid[rows]
            if row.mean_logit is None:
                total += nll[rows].sum()
            else:
                uniform = (row.log_normaliser - row.mean_logit) * live
                total += (1 - smoothing) * nll[rows].sum() + smoothing * uniform.sum()
            if d_hidden is None or d_weight is None:
                continue

            # d loss / d logits = p - (1 - s) [label] - s / V; the mean's 1 / count waits for backward, so that
            # a small float16 or bfloat16 gradient is not rounded away before the loss scale reaches it.
            d_logits = row.exponent.mul_(live[:, None] / row.normaliser)
            if smoothing:
                d_logits.sub_((smoothing / vocabulary) * live[:, None])
            taken = (1 - smoothing) * (live[:, None] if here is None else live[:, None] * here)
            d_logits.scatter_(1, target, d_logits.gather(1, target) - taken)
            d_logits = d_logits.narrow(1, begin, own).to(multiplied_in)
            if multiplied_in == hidden.dtype:
                torch.mm(d_logits, factor, out=d_hidden[rows])
            else:
                d_hidden[rows] = d_logits @ factor
            if multiplied_in == wide:
                d_weight.addmm_(d_logits.t(), x)
            else:
                d_weight += d_logits.t() @ x

        count = valid.sum().clamp(min=1)
        if d_hidden is not None and d_weight is not None:
            ctx.save_for_backward(d_hidden, d_weight, count)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(nll, hit)
        return total / count, nll, hit

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        d_hidden, d_weight, count = ctx.saved_tensors
        scale = grads[0] / count
        grad_weight = torch.empty_like(d_weight, dtype=ctx.weight_dtype)
        torch.mul(d_weight, scale, out=grad_weight)
        # As a matrix: beside a 16-bit tensor a GPU rounds a scalar to 16 bit first.
        grad_hidden = torch.mul(d_hidden, scale.view(1, 1), out=torch.empty_like(d_hidden))
        return grad_hidden, grad_weight, None, None, None, None, None

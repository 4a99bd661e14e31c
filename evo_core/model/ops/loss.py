"""Output projection and cross-entropy in one, a few rows at a time.

The logits of a whole sequence are the largest tensor of a language model (T x vocabulary); here only one
chunk of rows exists at any moment. A chunk's gradient is formed right after its loss, while its logits are at
hand, so the backward pass only scales what is already there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_core.model.dtypes import accumulation_dtype, product_dtype

IGNORE_INDEX = -100

#: Rows of logits at once: at least this many, and up to so many elements. Measured on a CPU with vocabularies of
#: 4096 to 32000: fewer rows spend their time on adding up the weight's gradient.
_LEAST_ROWS = 256
_ELEMENTS_ON_A_CPU, _ELEMENTS_ON_A_GPU = 2**21, 2**27


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    chunk_rows: int | None = None,
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

    Returns:
        loss: scalar, the mean over labels that are not ignored (0 if there are none), differentiable.
        nll: [T], ``-log p[label]`` without smoothing; 0 where ignored.
        hit: [T] bool, whether the largest logit is the label's; False where ignored.
        loss and nll have float32 or, for float64 input, float64.
    """
    elements = _ELEMENTS_ON_A_CPU if hidden.device.type == "cpu" else _ELEMENTS_ON_A_GPU
    rows = chunk_rows or max(_LEAST_ROWS, elements // weight.shape[0])
    with_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, labels, label_smoothing, rows, with_gradient)


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
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = accumulation_dtype(hidden.dtype)
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
            highest, argmax = logits.max(dim=-1, keepdim=True)
            at_target = logits.gather(1, target)
            mean_logit = logits.mean(dim=-1) if smoothing else None
            # In place: what was logits is probabilities from here on, and their gradient after that.
            probability = logits.sub_(highest).exp_()
            normaliser = probability.sum(dim=-1, keepdim=True)
            log_normaliser = (highest + normaliser.log()).squeeze(1)

            nll[rows] = (log_normaliser - at_target.squeeze(1)) * live
            hit[rows] = (argmax == target).squeeze(1) & valid[rows]
            if mean_logit is None:
                total += nll[rows].sum()
            else:
                uniform = (log_normaliser - mean_logit) * live
                total += (1 - smoothing) * nll[rows].sum() + smoothing * uniform.sum()
            if d_hidden is None or d_weight is None:
                continue

            # d loss / d logits = p - (1 - s) [label] - s / V; the mean's 1 / count waits for backward, so that
            # a small float16 or bfloat16 gradient is not rounded away before the loss scale reaches it.
            d_logits = probability.mul_(live[:, None] / normaliser)
            if smoothing:
                d_logits.sub_((smoothing / weight.shape[0]) * live[:, None])
            d_logits.scatter_(1, target, d_logits.gather(1, target) - (1 - smoothing) * live[:, None])
            d_logits = d_logits.to(multiplied_in)
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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        d_hidden, d_weight, count = ctx.saved_tensors
        scale = grads[0] / count
        grad_weight = torch.empty_like(d_weight, dtype=ctx.weight_dtype)
        torch.mul(d_weight, scale, out=grad_weight)
        return d_hidden * scale, grad_weight, None, None, None, None

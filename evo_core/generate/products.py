"""Products of a few rows with weights, as single tokens need them: bound by reading the weights, not by multiplying.

So each weight is copied once, when it is first needed, in the order in which a step reads it fastest. On a CPU these
are panels for one row, and oneDNN's own blocks for several. Measured on one core with AVX-512 at 256 x 1408 to
512 x 8192 in float32: panels read a weight 1.7 to 3.4 times as fast as ``F.linear`` does for one row, blocks take 0.5
to 0.7 of its time for 2 to 32 rows; in bfloat16 blocks take half its time, and the result has the same bits.

The copies are those of the weights at that moment. They live as long as the object that made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_core.model import Decoder
from evo_core.model.dtypes import accumulation_dtype, product_dtype
from evo_core.model.ops.linear import Linear
from evo_core.parallel.tensor.linear import RowLinear

COPIED_ELEMENTS = 1 << 23
"""Weights up to this size are copied, and joined with others of the same input; a second copy of larger ones would
take more memory than it is worth."""

PANEL_COLUMNS = 16
"""Columns of a panel: with 8 or 32 a product of one row takes 1.1 to 1.7 times as long."""

BLOCKED_FOR_ROWS = 8
"""The rows for which blocks are laid out: so they are as fast as any for every number of rows from 2 up."""

Part = tuple[Tensor, Tensor | None]
"""Weight [out_features, in_features] and bias [out_features] of a linear layer."""


class Form(Protocol):
    """One way in which a weight lies in memory."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [rows, in_features] -> [rows, out_features]."""
        ...

    def plus(self, x: Tensor, to: Tensor) -> Tensor:
        """The same, added to another tensor [rows, out_features], which stays as it is."""
        ...


class Product:
    """Linear layers of one input; their results lie behind one another [rows, sum of out_features].

    Args:
        parts: weight and bias of each, all with biases or none.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = [(weight.detach(), None if bias is None else bias.detach()) for weight, bias in parts]
        self._is_copied = sum(weight.numel() for weight, _ in parts) <= COPIED_ELEMENTS

    @classmethod
    def of(cls, *linears: Linear) -> Product:
        """The product with the weights of these layers."""
        return cls([(linear.weight, linear.bias) for linear in linears])

    def for_rows(self, rows: int) -> Form:
        """The weights as so many rows of input read them fastest."""
        return self._for_one if rows == 1 else self._for_several

    def __call__(self, x: Tensor) -> Tensor:
        """x [rows, in_features] -> [rows, sum of out_features]."""
        return self.for_rows(x.shape[0])(x)

    @cached_property
    def _for_one(self) -> Form:
        weight = self._parts[0][0]
        is_wide_on_cpu = weight.device.type == "cpu" and weight.dtype == accumulation_dtype(weight.dtype)
        return Panels(*self._joined) if self._is_copied and is_wide_on_cpu else self._for_several

    @cached_property
    def _for_several(self) -> Form:
        parts = [self._joined] if self._is_copied else self._parts
        form = Blocks if has_blocks(parts[0][0]) else Plain
        return form(*parts[0]) if len(parts) == 1 else SideBySide([form(*part) for part in parts])

    @property
    def _joined(self) -> Part:
        if len(self._parts) == 1:
            return self._parts[0]
        biases = [bias for _, bias in self._parts if bias is not None]
        return torch.cat([weight for weight, _ in self._parts]), torch.cat(biases) if biases else None


class Sum:
    """A linear layer added to the residual stream; where ranks hold it together, its parts are added up first."""

    def __init__(self, linear: Linear, model: Decoder) -> None:
        self._exchange = linear.exchange if isinstance(linear, RowLinear) else None
        self._bias = linear.bias if self._exchange is not None else None
        self._product = Product([(linear.weight, None if self._exchange is not None else linear.bias)])
        # In narrow types the sum inside the product would round once where the modules round twice.
        self._is_inside = linear.bias is None and model.dtype == accumulation_dtype(model.dtype)

    def __call__(self, h: Tensor, x: Tensor) -> Tensor:
        """h [rows, in_features] and x [rows, hidden_size] -> x + linear(h)."""
        if self._exchange is not None:
            out = self._exchange.left(self._product(h))
            return x + (out if self._bias is None else out + self._bias)
        if self._is_inside:
            return self._product.for_rows(h.shape[0]).plus(h, x)
        return x + self._product(h)


class Plain:
    """A weight as its layer has it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight.t(), bias

    def __call__(self, x: Tensor) -> Tensor:
        """See `Form`."""
        return torch.mm(x, self._weight) if self._bias is None else torch.addmm(self._bias, x, self._weight)

    def plus(self, x: Tensor, to: Tensor) -> Tensor:
        """See `Form`."""
        return torch.addmm(to, x, self._weight) if self._bias is None else to + self(x)


class Panels:
    """A weight cut into panels of `PANEL_COLUMNS` columns, each in one piece; the last one filled up with zeros."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._width, self._bias = len(weight), bias
        padded = F.pad(weight, (0, 0, 0, -len(weight) % PANEL_COLUMNS))
        self._panels = padded.unflatten(0, (-1, PANEL_COLUMNS)).mT.contiguous()  # [panels, in_features, columns]

    def __call__(self, x: Tensor) -> Tensor:
        """See `Form`."""
        result = torch.bmm(x.expand(len(self._panels), -1, -1), self._panels)
        result = result.transpose(0, 1).flatten(1)[:, : self._width]
        return result if self._bias is None else result.add_(self._bias)

    def plus(self, x: Tensor, to: Tensor) -> Tensor:
        """See `Form`."""
        return self(x).add_(to)


class Blocks:
    """A weight in the blocks of oneDNN's matrix product; one that is too large for a copy is read as it lies."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        is_copied = weight.numel() <= COPIED_ELEMENTS
        blocked = torch.ops.mkldnn._reorder_linear_weight
        self._weight = blocked(weight.contiguous(), BLOCKED_FOR_ROWS) if is_copied else weight
        self._bias = bias
        # Looked up once: it is called ten times in a layer's microseconds.
        self._run, self._add = torch.ops.mkldnn._linear_pointwise.default, torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor) -> Tensor:
        """See `Form`."""
        return self._run(x, self._weight, self._bias, "none", [], "")

    def plus(self, x: Tensor, to: Tensor) -> Tensor:
        """See `Form`."""
        return self._add(x, to, self._weight, self._bias, "add")


class SideBySide:
    """Several weights that are too large to be joined: a product with each, and the results put together."""

    def __init__(self, forms: Sequence[Form]) -> None:
        self._forms = forms

    def __call__(self, x: Tensor) -> Tensor:
        """See `Form`."""
        return torch.cat([form(x) for form in self._forms], -1)

    def plus(self, x: Tensor, to: Tensor) -> Tensor:
        """See `Form`."""
        return self(x).add_(to)


def has_blocks(weight: Tensor) -> bool:
    """Whether this torch has oneDNN's product for a weight's device and dtype, and the CPU multiplies it fast."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and product_dtype(weight.dtype, "cpu") == weight.dtype
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )

"""The decoder as generation runs it: whole prompts through its modules, single tokens on a short path.

A step of one token per row is bound by the number of operations, not by their size. So for the modules it knows, the
short path computes the same function as they do with as few operations as it takes: projections of one input as one
product, sums inside the product, rotations in place, nothing for the backward pass.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo_core.generate.kv_cache import KVCache
from evo_core.model import Decoder
from evo_core.model.decoder import Attention, Block
from evo_core.model.dtypes import accumulation_dtype
from evo_core.model.ops.documents import Documents
from evo_core.model.ops.linear import Linear
from evo_core.model.ops.mlp import MLP
from evo_core.model.ops.moe import MixtureMLP
from evo_core.model.ops.norm import Norm
from evo_core.model.ops.rope import Rotary, rotate

COPIED_ELEMENTS = 1 << 23
"""Weights up to this size are copied in the order in which a step reads them fastest; a second copy of larger ones
would take more memory than it is worth."""

PANEL_ROWS, PANEL_COLUMNS = range(4, 25), 16
"""On a CPU, a product of so many rows takes half to nine tenths of the time when the weight lies in panels of so many
columns: fewer rows are bound by reading it, and for more the library's own copying into panels pays off."""


class Forward:
    """Runs a decoder over new prompts and over single tokens with a `KVCache`.

    The weights are taken as they are when it is made.
    """

    def __init__(self, model: Decoder) -> None:
        self.model, self.device = model, model.embedding.weight.device
        with torch.inference_mode():
            self._head = _Product([(model.head.effective_weight(), None)])
            self._layers: list[_Layer | None] = [
                _Layer(block, model) if isinstance(block, Block) and _is_known(block) else None
                for block in model.blocks
            ]
            blank = model.rotation(torch.zeros(1, dtype=torch.int64, device=self.device))
            self._unrotated = blank._replace(cos=torch.ones_like(blank.cos), sin=torch.zeros_like(blank.sin))
        self._norm = None if model.cfg.apply_post_layer_norm else _fast_norm(model.norm)
        self._wide = accumulation_dtype(model.dtype) if model.cfg.residual_in_fp32 else model.dtype
        self._short = all(layer is not None for layer in self._layers)

    def prompts(self, prompts: list[list[int]], more: list[int], cache: KVCache) -> Tensor:
        """Read the whole prompts of new rows; the logits after each [rows, vocab_size].

        Args:
            prompts: token ids of each.
            more: tokens that may follow each.
        """
        positions = cache.extend([len(ids) for ids in prompts], more)
        ids = torch.tensor([token for prompt in prompts for token in prompt], device=self.device)
        ends = torch.tensor([0, *(len(prompt) for prompt in prompts)]).cumsum(0)
        documents = Documents(ends.to(self.device, torch.int32), max(map(len, prompts)))
        hidden = self._modules(ids, positions, documents, cache)
        return self._head(hidden[(ends[1:] - 1).to(self.device)])

    def step(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Read one more token of every row [rows]; the logits after it [rows, vocab_size]."""
        positions = cache.step()
        if not self._short:
            one_each = torch.arange(len(tokens) + 1, device=self.device, dtype=torch.int32)
            return self._head(self._modules(tokens, positions, Documents(one_each, 1), cache))
        x = F.embedding(tokens, self.model.embedding.weight).to(self._wide)
        turn = _Turn(cache.rotation)
        for number, layer in enumerate(self._layers):
            x = layer(x, number, cache, turn)  # type: ignore[misc]
        return self._head(x if self._norm is None else self._norm(x))

    def _modules(self, ids: Tensor, positions: Tensor, documents: Documents, cache: KVCache) -> Tensor:
        rotation = self._unrotated_for(len(ids)) if cache.dynamic_ntk else cache.rotation
        return self.model.hidden(ids, positions, documents, cache, rotation)

    def _unrotated_for(self, tokens: int) -> Rotary:
        cos, sin, interleaved = self._unrotated
        return Rotary(cos.expand(tokens, -1), sin.expand(tokens, -1), interleaved)


def _is_known(block: nn.Module) -> bool:
    """Whether a block is made of the parts that the short path computes, and of no others."""
    if type(block) is not Block:
        return False
    attention, mlp = block.attention, block.mlp
    norms = (block.attention_norm, block.mlp_norm, *(norm for norm in _qk_norms(attention) if norm is not None))
    parts = (attention, mlp) if type(mlp) is MLP else (attention,)
    linears = [module for part in parts for module in part.children() if not isinstance(module, Norm)]
    return (
        type(attention) is Attention
        and type(mlp) in (MLP, MixtureMLP)
        and all(type(norm) is Norm for norm in norms)
        and all(type(linear) is Linear for linear in linears if linear is not attention.core)
        and len(list(block.children())) == 4
    )


def _qk_norms(attention: nn.Module) -> tuple[Norm | None, Norm | None]:
    """The norms of queries and keys, of families that have them."""
    return getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)


class _Layer:
    """One block on the short path: x [rows, hidden_size] -> [rows, hidden_size]."""

    def __init__(self, block: Block, model: Decoder) -> None:
        attention, mlp = block.attention, block.mlp
        self.post_norm = block.post_norm
        self.heads, self.kv_heads, self.width = attention.heads, attention.kv_heads, attention.head_dim
        self.grouped = attention.layout == "grouped"
        if attention.layout == "split":
            self.qkv = _Product.of(attention.q, attention.k, attention.v)
        else:
            self.qkv = _Product.of(attention.qkv)
        self.q_norm, self.k_norm = _qk_norms(attention)
        self.out = _Sum(attention.out, model)
        self.experts = mlp if isinstance(mlp, MixtureMLP) else None
        if isinstance(mlp, MLP):
            self.down, self.gated, self.ffn = _Sum(mlp.down, model), mlp.gated, mlp.down.in_features
            self.up = _Product.of(mlp.gate, mlp.up) if mlp.gated else _Product.of(mlp.up)
        self.attention_norm, self.mlp_norm = _fast_norm(block.attention_norm), _fast_norm(block.mlp_norm)

    def __call__(self, x: Tensor, number: int, cache: KVCache, turn: _Turn) -> Tensor:
        if self.post_norm:
            x = self.attention_norm(self.attend(x, x, number, cache, turn))
            return self.mlp_norm(self.feed(x, x))
        x = self.attend(self.attention_norm(x), x, number, cache, turn)
        return self.feed(self.mlp_norm(x), x)

    def attend(self, h: Tensor, x: Tensor, number: int, cache: KVCache, turn: _Turn) -> Tensor:
        """x + attention(h)."""
        rows, heads, kv_heads = h.shape[0], self.heads, self.kv_heads
        qkv = self.qkv(h)
        if self.grouped:  # [rows, kv_heads, its queries and its key and value, width]
            group = heads // kv_heads
            qkv = qkv.view(rows, kv_heads, group + 2, self.width)
            q, k, turned = qkv[:, :, :group], qkv[:, :, group : group + 1], qkv[:, :, : group + 1]
            fresh = qkv[:, :, group:].permute(2, 0, 1, 3)
        else:
            qkv = qkv.view(rows, heads + 2 * kv_heads, self.width)
            q, k, turned = qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, : heads + kv_heads]
            fresh = qkv[:, heads:].view(rows, 2, kv_heads, self.width).transpose(0, 1)
        if self.q_norm is not None and self.k_norm is not None:
            q.copy_(self.q_norm(q))
            k.copy_(self.k_norm(k))
        if cache.dynamic_ntk:  # keys are kept as they are, and queries must not touch them
            cache.remember(number, fresh)
            turn(q)
        else:
            turn(turned)
            cache.remember(number, fresh)
        read = cache.read(number, q if self.grouped else q.view(rows, kv_heads, -1, self.width))
        return self.out(read.reshape(rows, -1), x)

    def feed(self, h: Tensor, x: Tensor) -> Tensor:
        """x + mlp(h)."""
        if self.experts is not None:
            return x + self.experts(h, keep_all=True)[0]
        up = self.up(h)
        if self.gated:
            return self.down(F.silu(up[:, : self.ffn]).mul_(up[:, self.ffn :]), x)
        return self.down(F.gelu(up, approximate="tanh"), x)


class _Product:
    """Linear layers of one input; their results lie behind one another [rows, sum of out_features].

    Several of moderate size become one. For a few rows of input a product is bound by reading the weight, so on a CPU
    it is copied in the order in which it is read fastest: a weight with more rows than columns with each column in
    one piece, and for `PANEL_ROWS` rows of input in panels.

    Args:
        parts: weight [out_features, in_features] and bias of each.
    """

    def __init__(self, parts: list[tuple[Tensor, Tensor | None]]) -> None:
        self.parts = [(weight.detach().t(), bias) for weight, bias in parts]
        self.width, columns = sum(weight.shape[0] for weight, _ in parts), parts[0][0].shape[1]
        self._panels: _Panels | None = None
        if self.width * columns > COPIED_ELEMENTS:
            return
        weight = torch.cat([weight.detach() for weight, _ in parts]) if len(parts) > 1 else parts[0][0].detach()
        biases = [bias.detach() for _, bias in parts if bias is not None]
        on_cpu = weight.device.type == "cpu"
        by_column = weight.t().contiguous() if on_cpu and self.width > columns else weight.t()
        if not biases and _is_wide_on_cpu(weight):
            self._panels = _Panels(by_column.t())
        self.parts = [(by_column, torch.cat(biases) if biases else None)]

    @classmethod
    def of(cls, *linears: Linear) -> _Product:
        """The product with the weights of these layers."""
        return cls([(linear.weight, linear.bias) for linear in linears])

    def __call__(self, x: Tensor) -> Tensor:
        if self._panels is not None and x.shape[0] in PANEL_ROWS:
            return self._panels(x)
        results = [torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight) for weight, bias in self.parts]
        return results[0] if len(results) == 1 else torch.cat(results, -1)


class _Panels:
    """x [rows, in_features] -> x @ weight.T [rows, out_features], the weight copied in panels when first used.

    Args:
        weight: [out_features, in_features].
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    @cached_property
    def _panels(self) -> Tensor:
        """[panels, in_features, PANEL_COLUMNS], the last one filled up with zeros."""
        padded = F.pad(self._weight, (0, 0, 0, -len(self._weight) % PANEL_COLUMNS))
        return padded.unflatten(0, (-1, PANEL_COLUMNS)).mT.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        result = torch.bmm(x.expand(len(self._panels), -1, -1), self._panels)
        return result.transpose(0, 1).flatten(1)[:, : len(self._weight)]


def _is_wide_on_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == accumulation_dtype(weight.dtype)


class _Sum:
    """A linear layer added to the residual stream."""

    def __init__(self, linear: Linear, model: Decoder) -> None:
        self.linear, self.weight = linear, linear.weight.detach().t()
        # In narrow types the sum inside the product would round once where the modules round twice.
        self.inside = linear.bias is None and model.dtype == accumulation_dtype(model.dtype)
        copied = self.inside and self.weight.numel() <= COPIED_ELEMENTS and _is_wide_on_cpu(self.weight)
        self._panels = _Panels(linear.weight.detach()) if copied else None

    def __call__(self, h: Tensor, x: Tensor) -> Tensor:
        if self._panels is not None and h.shape[0] in PANEL_ROWS:
            return self._panels(h).add_(x)
        if self.inside:
            return torch.addmm(x, h, self.weight)
        return x + F.linear(h, self.linear.weight, self.linear.bias)


def _fast_norm(norm: Norm) -> Any:
    """The norm itself, or for RMSNorm on a CPU in a wide type the same without what the backward pass needs."""
    weight = norm.weight.detach()
    wide = norm.out_dtype == accumulation_dtype(norm.out_dtype) == weight.dtype
    if norm.kind != "rmsnorm" or weight.is_cuda or not wide:
        return norm
    eps, share = torch.full((), norm.eps, dtype=weight.dtype), 1 / norm.size

    def rms(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.mul(x, torch.addcmul(eps, length, length, value=share).rsqrt_()).mul_(weight)

    return rms


class _Turn:
    """`rotate` in place, for x [rows, ..., head_dim] that nobody needs unrotated."""

    def __init__(self, rotation: Rotary) -> None:
        self.rotation, self.half = rotation, rotation.cos.shape[1] // 2
        self.tables = {dims: self._shaped(dims) for dims in (3, 4)}

    def _shaped(self, dims: int) -> tuple[Tensor, Tensor]:
        cos, sin, _ = self.rotation
        shape = (cos.shape[0],) + (1,) * (dims - 2) + (cos.shape[1],)
        return cos.view(shape), sin.view(shape)

    def __call__(self, x: Tensor) -> None:
        if x.dtype != self.rotation.cos.dtype:
            x.copy_(rotate(x, self.rotation))
            return
        cos, sin = self.tables[x.dim()]
        if self.rotation.interleaved:
            partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            partner = x.roll(self.half, -1)
        x.mul_(cos).addcmul_(partner, sin)

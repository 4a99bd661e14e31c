"""The three families in float64, written straight from the formulas: one token and one head at a time where it is
clearer, a dense mask, no packing tricks, nothing shared with evo_core."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evo_core.config import ModelConfig

Weights = dict[str, Tensor]


def loss(weights: Weights, cfg: ModelConfig, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy over labels that are not -100."""
    log_p = torch.log_softmax(logits(weights, cfg, batch), dim=-1)
    rows = [-log_p[t, label] for t, label in enumerate(batch["labels"].tolist()) if label != -100]
    return torch.stack(rows).mean()


def logits(weights: Weights, cfg: ModelConfig, batch: dict[str, Tensor]) -> Tensor:
    """[T, V]."""
    first = cfg.model_type == "INTERNLM"
    x = weights["embedding.weight" if first else "tok_embeddings.weight"][batch["input_ids"]]
    for layer in range(cfg.num_layers):
        if first:
            names = {"norm1": "norm1", "norm2": "norm2", "attention": "mixer", "mlp": "mlp", "out": "out_proj"}
            prefix = f"blocks.{layer}."
        else:
            names = {
                "norm1": "attention_norm",
                "norm2": "ffn_norm",
                "attention": "attention",
                "mlp": "feed_forward",
                "out": "wo",
            }
            prefix = f"layers.{layer}."

        def weight(part: str, rest: str, prefix: str = prefix, names: dict[str, str] = names) -> Tensor | None:
            return weights.get(f"{prefix}{names[part]}.{rest}")

        if cfg.apply_post_layer_norm:
            x = norm(x + attention(x, weight, names["out"], cfg, batch), weight, "norm1", cfg)
            x = norm(x + mlp(x, weight, cfg), weight, "norm2", cfg)
        else:
            x = x + attention(norm(x, weight, "norm1", cfg), weight, names["out"], cfg, batch)
            x = x + mlp(norm(x, weight, "norm2", cfg), weight, cfg)
    if not cfg.apply_post_layer_norm:
        x = norm(x, lambda part, rest: weights.get(f"norm.{rest}"), "norm", cfg)
    head = weights["head.weight" if first else "output.weight"]
    if cfg.norm_head:
        head = head / head.pow(2).sum(1, keepdim=True).sqrt()
    return x @ head.T


def norm(x, weight, part, cfg):
    if cfg.norm_type == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    scaled = x / (x.pow(2).mean(-1, keepdim=True) + cfg.layer_norm_epsilon).sqrt() * weight(part, "weight")
    return scaled if weight(part, "bias") is None else scaled + weight(part, "bias")


def mlp(x, weight, cfg):
    if not cfg.use_swiglu:
        h = x @ weight("mlp", "fc1.weight").T
        cubic = math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)
        return (0.5 * h * (1 + torch.tanh(cubic))) @ weight("mlp", "fc2.weight").T
    gate, up = x @ weight("mlp", "w1.weight").T, x @ weight("mlp", "w3.weight").T
    return (gate * torch.sigmoid(gate) * up) @ weight("mlp", "w2.weight").T


def attention(x, weight, out, cfg, batch):
    heads, kv_heads = cfg.num_attention_heads, cfg.num_kv_attention_heads
    d = cfg.hidden_size // heads
    group = heads // kv_heads

    def linear(name: str) -> Tensor:
        y = x @ weight("attention", f"{name}.weight").T
        bias = weight("attention", f"{name}.bias")
        return y if bias is None else y + bias

    if cfg.model_type == "INTERNLM":
        q, k, v = (linear("Wqkv").reshape(-1, 3, heads, d)[:, i] for i in range(3))
    elif cfg.model_type == "INTERNLM2_PUBLIC":
        rows = linear("wqkv").reshape(-1, kv_heads, group + 2, d)
        q = torch.stack([rows[:, h // group, h % group] for h in range(heads)], dim=1)
        k, v = rows[:, :, group], rows[:, :, group + 1]
    else:
        q, k, v = (linear(name).reshape(x.shape[0], -1, d) for name in ("wq", "wk", "wv"))

    tokens = x.shape[0]
    ends = batch["cu_seqlens"].tolist()
    document = [next(i for i, end in enumerate(ends[1:]) if t < end) for t in range(tokens)]
    visible = torch.tensor([[document[s] == document[t] and s <= t for s in range(tokens)] for t in range(tokens)])
    result = []
    for h in range(heads):
        qh = rope(q[:, h], batch["positions"], cfg)
        kh = rope(k[:, h // group], batch["positions"], cfg)
        scores = (qh @ kh.T / math.sqrt(d)).masked_fill(~visible, -math.inf)
        result.append(torch.softmax(scores, dim=-1) @ v[:, h // group])
    y = torch.cat(result, dim=1) @ weight("attention", f"{out}.weight").T
    bias = weight("attention", f"{out}.bias")
    return y if bias is None else y + bias


def rope(x, positions, cfg):
    d = x.shape[-1]
    columns: list[Tensor | None] = [None] * d
    for i in range(d // 2):
        a, b = (2 * i, 2 * i + 1) if cfg.qk_interleaved else (i, i + d // 2)
        angle = positions.double() * cfg.rope_base ** (-2 * i / d)
        columns[a] = x[:, a] * angle.cos() - x[:, b] * angle.sin()
        columns[b] = x[:, a] * angle.sin() + x[:, b] * angle.cos()
    return torch.stack(columns, dim=1)

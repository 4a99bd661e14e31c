"""The families in float64, written straight from the formulas: one token and one head at a time where it is
clearer, a dense mask, no packing tricks, nothing shared with evo_core."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evo_core.config import ModelConfig

Weights = dict[str, Tensor]


def loss(weights: Weights, cfg: ModelConfig, batch: dict[str, Tensor], smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over labels that are not -100."""
    log_p = torch.log_softmax(logits(weights, cfg, batch), dim=-1)
    rows = [
        -(1 - smoothing) * log_p[t, label] - smoothing * log_p[t].mean()
        for t, label in enumerate(batch["labels"].tolist())
        if label != -100
    ]
    return torch.stack(rows).mean()


def logits(weights: Weights, cfg: ModelConfig, batch: dict[str, Tensor]) -> Tensor:
    """[T, V]."""
    return logits_and_balances(weights, cfg, batch)[0]


def logits_and_balances(weights: Weights, cfg: ModelConfig, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """[T, V], and the balance loss of each layer with experts."""
    first, balances = cfg.model_type in ("INTERNLM", "INTERNLM_MoE"), []
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

        def feed(y: Tensor, weight=weight) -> Tensor:
            if cfg.num_experts == 1:
                return mlp(y, weight, cfg)
            out, balance = mixture(y, weight, cfg)
            balances.append(balance)
            return out

        if cfg.apply_post_layer_norm:
            x = norm(x + attention(x, weight, names["out"], cfg, batch), weight, "norm1", cfg)
            x = norm(x + feed(x), weight, "norm2", cfg)
        else:
            x = x + attention(norm(x, weight, "norm1", cfg), weight, names["out"], cfg, batch)
            x = x + feed(norm(x, weight, "norm2", cfg))
    if not cfg.apply_post_layer_norm:
        x = norm(x, lambda part, rest: weights.get(f"norm.{rest}"), "norm", cfg)
    if cfg.tie_word_embeddings:
        head = weights["embedding.weight" if first else "tok_embeddings.weight"]
    else:
        head = weights["head.weight" if first else "output.weight"]
    if cfg.norm_head:
        head = head / head.pow(2).sum(1, keepdim=True).sqrt()
    return x @ head.T, balances


def norm(x, weight, part, cfg, prefix=""):
    if cfg.norm_type == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    scaled = x / (x.pow(2).mean(-1, keepdim=True) + cfg.layer_norm_epsilon).sqrt() * weight(part, f"{prefix}weight")
    bias = weight(part, f"{prefix}bias")
    return scaled if bias is None else scaled + bias


def mlp(x, weight, cfg, prefix=""):
    if not cfg.use_swiglu:
        h = x @ weight("mlp", f"{prefix}fc1.weight").T
        cubic = math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)
        return (0.5 * h * (1 + torch.tanh(cubic))) @ weight("mlp", f"{prefix}fc2.weight").T
    gate, up = x @ weight("mlp", f"{prefix}w1.weight").T, x @ weight("mlp", f"{prefix}w3.weight").T
    return (gate * torch.sigmoid(gate) * up) @ weight("mlp", f"{prefix}w2.weight").T


def mixture(x, weight, cfg):
    """Experts without noise or chance: every expert reads every token, and a token takes what it is entitled to."""
    tokens, moe = x.shape[0], cfg.moe
    gates = torch.softmax(x @ weight("mlp", "moe_layer.gate.wg.weight").T, dim=-1)
    outputs = [mlp(x, weight, cfg, f"moe_layer.experts.wrapped_experts.{e}.") for e in range(cfg.num_experts)]
    dropless = cfg.moe_type != "GShard"
    ranking = [sorted(range(cfg.num_experts), key=lambda e, t=t: -gates[t, e].item()) for t in range(tokens)]
    room = math.inf
    if moe.drop_tokens and not dropless:
        room = max(math.ceil(tokens / cfg.num_experts * moe.capacity_factor * moe.top_k), moe.min_capacity)
    taken, kept = [0] * cfg.num_experts, {}
    for choice in range(moe.top_k):  # all first choices are served before any second one
        for t in range(tokens):
            expert = ranking[t][choice]
            kept[t, choice] = taken[expert] < room
            taken[expert] += 1
    rows = []
    for t in range(tokens):
        chosen = [ranking[t][choice] for choice in range(moe.top_k) if kept[t, choice]]
        total = sum((gates[t, e] for e in chosen), torch.zeros(())) if dropless or moe.top_k > 1 else 1.0
        rows.append(sum((gates[t, e] / total * outputs[e][t] for e in chosen), torch.zeros_like(x[t])))
    counted = range(moe.top_k) if dropless else (0,)
    votes = [ranking[t][choice] for t in range(tokens) for choice in counted]
    share = [votes.count(e) / len(votes) for e in range(cfg.num_experts)]
    balance = cfg.num_experts * sum(gates[:, e].mean() * share[e] for e in range(cfg.num_experts))
    out = torch.stack(rows)
    if cfg.moe_use_residual:
        coefficient = torch.softmax(x @ weight("mlp", "coefficient.weight").T + weight("mlp", "coefficient.bias"), -1)
        out = out * coefficient[:, :1] + mlp(x, weight, cfg, "residual_mlp.") * coefficient[:, 1:]
    return out, balance


def attention(x, weight, out, cfg, batch):
    heads, kv_heads = cfg.num_attention_heads, cfg.num_kv_attention_heads
    d = cfg.head_dim
    group = heads // kv_heads

    def linear(name: str) -> Tensor:
        y = x @ weight("attention", f"{name}.weight").T
        bias = weight("attention", f"{name}.bias")
        return y if bias is None else y + bias

    if cfg.model_type in ("INTERNLM", "INTERNLM_MoE"):
        q, k, v = (linear("Wqkv").reshape(-1, 3, heads, d)[:, i] for i in range(3))
    elif cfg.model_type == "INTERNLM2_PUBLIC":
        rows = linear("wqkv").reshape(-1, kv_heads, group + 2, d)
        q = torch.stack([rows[:, h // group, h % group] for h in range(heads)], dim=1)
        k, v = rows[:, :, group], rows[:, :, group + 1]
    else:
        q, k, v = (linear(name).reshape(x.shape[0], -1, d) for name in ("wq", "wk", "wv"))

    if cfg.qk_norm:
        q, k = norm(q, weight, "attention", cfg, "q_norm."), norm(k, weight, "attention", cfg, "k_norm.")

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
        speed = cfg.rope_base ** (-2 * i / d)
        if (scaling := cfg.rope_scaling) is not None:
            wavelength, length = 2 * math.pi / speed, scaling.original_max_position_embeddings
            if wavelength > length / scaling.low_freq_factor:
                speed = speed / scaling.factor
            elif wavelength > length / scaling.high_freq_factor:
                smooth = (length / wavelength - scaling.low_freq_factor) / (
                    scaling.high_freq_factor - scaling.low_freq_factor
                )
                speed = (1 - smooth) * speed / scaling.factor + smooth * speed
        angle = positions.double() * speed
        columns[a] = x[:, a] * angle.cos() - x[:, b] * angle.sin()
        columns[b] = x[:, a] * angle.sin() + x[:, b] * angle.cos()
    return torch.stack(columns, dim=1)

"""How the classes of Hugging Face's transformers (and InternLM's own for it) name and order a decoder's tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from evo_core.config import ModelConfig
from evo_core.weights.heads import part_of_qkv, to_qkv
from evo_core.weights.lazy import Lazy, joined

_MIXTURE = {
    "mlp.moe_layer.gate.wg": "mlp.gate",
    "mlp.moe_layer.experts.wrapped_experts.*.gate": "mlp.experts.*.gate_proj",
    "mlp.moe_layer.experts.wrapped_experts.*.up": "mlp.experts.*.up_proj",
    "mlp.moe_layer.experts.wrapped_experts.*.down": "mlp.experts.*.down_proj",
    "mlp.residual_mlp.gate": "mlp.residual_mlp.gate_proj",
    "mlp.residual_mlp.up": "mlp.residual_mlp.up_proj",
    "mlp.residual_mlp.down": "mlp.residual_mlp.down_proj",
    "mlp.coefficient": "mlp.coefficient",
}
_LLAMA_LAYER = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_LLAMA_TOP = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_INTERNLM2_LAYER = {
    "attention.qkv": "attention.wqkv",
    "attention.out": "attention.wo",
    "attention_norm": "attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "feed_forward.w1",
    "mlp.up": "feed_forward.w3",
    "mlp.down": "feed_forward.w2",
}
_INTERNLM2_TOP = {"embedding": "model.tok_embeddings", "norm": "model.norm", "head": "output"}

_LAYER = "model.layers."
_DERIVED = re.compile(r"\.(inv_freq|masked_bias)$")
"""Buffers that old versions saved beside the weights and that follow from the settings."""


@dataclass(frozen=True)
class Architecture:
    """One class: its name, what its config.json calls it, which model type it becomes, and its names.

    Attributes:
        layer: plain name inside a block to its name inside a layer; `*` stands for a number.
        grouped: whether query, key and value are one tensor, in groups.
    """

    name: str
    hf_type: str
    model_type: str
    layer: Mapping[str, str]
    top: Mapping[str, str]
    grouped: bool = False

    def to_plain(self, tensors: Mapping[str, Lazy], cfg: ModelConfig) -> dict[str, Lazy]:
        """The plain form of a folder's tensors; names that are not known are kept, for `compare` to refuse."""
        back = {theirs: ours for ours, theirs in self.layer.items()}
        top = {theirs: ours for ours, theirs in self.top.items()}
        plain: dict[str, Lazy] = {}
        for name, tensor in tensors.items():
            if _DERIVED.search(name):
                continue
            plain |= dict(self._plain(name, tensor, back, top, cfg))
        return plain

    def _plain(
        self, name: str, tensor: Lazy, back: Mapping[str, str], top: Mapping[str, str], cfg: ModelConfig
    ) -> Iterator[tuple[str, Lazy]]:
        path, _, kind = name.rpartition(".")
        if not path.startswith(_LAYER):
            yield f"{top.get(path, path)}.{kind}", tensor
            return
        layer, _, inner = path.removeprefix(_LAYER).partition(".")
        ours = _renamed(inner, back)
        if self.grouped and ours == "attention.qkv" and _fits(tensor, cfg):
            heads, kv_heads, head_dim = cfg.num_attention_heads, cfg.num_kv_attention_heads, cfg.head_dim
            for part in "qkv":

                def rows(x: Tensor, part: str = part) -> Tensor:
                    return part_of_qkv(x, part, "grouped", heads, kv_heads, head_dim)

                yield f"blocks.{layer}.attention.{part}.{kind}", tensor.then(rows)
        else:
            yield (f"blocks.{layer}.{ours}.{kind}" if ours else name), tensor

    def from_plain(self, plain: Mapping[str, Lazy], cfg: ModelConfig) -> dict[str, Lazy]:
        """A folder's tensors, in the order of the model."""
        tensors: dict[str, Lazy] = {}
        for name, tensor in plain.items():
            path, _, kind = name.rpartition(".")
            if not path.startswith("blocks."):
                tensors[f"{self.top[path]}.{kind}"] = tensor
                continue
            layer, _, inner = path.removeprefix("blocks.").partition(".")
            if self.grouped and inner in ("attention.k", "attention.v"):
                continue
            if self.grouped and inner == "attention.q":
                inner, tensor = "attention.qkv", _grouped(plain, f"blocks.{layer}.attention", kind, cfg)
            theirs = _renamed(inner, self.layer)
            assert theirs is not None, inner
            tensors[f"{_LAYER}{layer}.{theirs}.{kind}"] = tensor
        return tensors


LLAMA = Architecture("LlamaForCausalLM", "llama", "LLAMA2", _LLAMA_LAYER, _LLAMA_TOP)
QWEN3 = Architecture("Qwen3ForCausalLM", "qwen3", "QWEN3", _LLAMA_LAYER, _LLAMA_TOP)
INTERNLM = Architecture("InternLMForCausalLM", "internlm", "INTERNLM", _LLAMA_LAYER, _LLAMA_TOP)
INTERNLM2 = Architecture(
    "InternLM2ForCausalLM", "internlm2", "INTERNLM2_PUBLIC", _INTERNLM2_LAYER, _INTERNLM2_TOP, grouped=True
)
#: No class of transformers: the form is ours, InternLM's with a mixture in place of each MLP.
INTERNLM_MOE = Architecture(
    "InternLMMoEForCausalLM", "internlm_moe", "INTERNLM_MoE", _LLAMA_LAYER | _MIXTURE, _LLAMA_TOP
)

ARCHITECTURES = {a.name: a for a in (LLAMA, QWEN3, INTERNLM, INTERNLM2, INTERNLM_MOE)}
OF_MODEL_TYPE = {
    "LLAMA2": LLAMA,
    "LLAMA3": LLAMA,
    "QWEN3": QWEN3,
    "INTERNLM": INTERNLM,
    "INTERNLM2_PUBLIC": INTERNLM2,
    "INTERNLM_MoE": INTERNLM_MOE,
}
"""The class that a model type is written for, where none is asked for."""


def _renamed(inner: str, names: Mapping[str, str]) -> str | None:
    """The other name of a path, where a number in it may stand for `*`; None for one that is not known."""
    if inner in names:
        return names[inner]
    numbers = re.findall(r"(?<=\.)\d+(?=\.)", inner)
    pattern = names.get(re.sub(r"(?<=\.)\d+(?=\.)", "*", inner))
    return pattern.replace("*", numbers[0]) if pattern and numbers else None


def _grouped(plain: Mapping[str, Lazy], attention: str, kind: str, cfg: ModelConfig) -> Lazy:
    """The query, key and value of an attention in one tensor."""
    kv_heads, head_dim = cfg.num_kv_attention_heads, cfg.head_dim
    parts = [plain[f"{attention}.{part}.{kind}"] for part in "qkv"]
    return joined(parts, lambda three: to_qkv(three, "grouped", kv_heads, head_dim))


def _fits(tensor: Lazy, cfg: ModelConfig) -> bool:
    """Whether the rows are as many as the settings say; otherwise `compare` names the tensor."""
    return tensor.shape[0] == (cfg.num_attention_heads + 2 * cfg.num_kv_attention_heads) * cfg.head_dim

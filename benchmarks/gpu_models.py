"""The models of gpu.py on a device, with the same weights here and in transformers' Llama."""

from __future__ import annotations

import gc
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.peer_models import transformers_llama
from evo_core.config import ModelConfig
from evo_core.model import Decoder, build_model
from evo_core.model.init import deviations, fill_constants
from evo_core.train.peaks import known_peak


class Shape(NamedTuple):
    """A model's size: heads are `hidden / heads` wide."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    longest: int = 32768


SHAPES = {
    "1.8B": Shape(24, 2048, 16, 8, 8192, 92544),  # internlm/internlm2-1_8b
    "7B": Shape(32, 4096, 32, 8, 14336, 92544),  # internlm/internlm2-7b
    "tiny": Shape(2, 64, 4, 2, 128, 256, 512),  # for tests, on any device
}


def config(shape: Shape, dtype: torch.dtype, recomputed: float = 0.0) -> ModelConfig:
    """The `model` block of an InternLM2 of this size, of whose blocks a share is recomputed."""
    return ModelConfig.model_validate(
        {
            "model_type": "INTERNLM2_PUBLIC",
            "num_layers": shape.layers,
            "hidden_size": shape.hidden,
            "num_attention_heads": shape.heads,
            "num_kv_attention_heads": shape.kv_heads,
            "mlp_ratio": shape.ffn / shape.hidden,
            "multiple_of": 1,
            "vocab_size": shape.vocab,
            "no_bias": True,
            "rope_base": 1e6,
            "max_position_embeddings": shape.longest,
            "checkpoint": recomputed,
            "dtype": str(dtype),
        }
    )


@torch.no_grad()
def evo(shape: Shape, device: torch.device, dtype: torch.dtype, recomputed: float = 0.0) -> Decoder:
    """This repository's decoder. Its weights are drawn on the device: for 7 billion the CPU takes a minute."""
    cfg = config(shape, dtype, recomputed)
    model: Decoder = build_model(cfg, device=device, dtype=dtype)
    generator = torch.Generator(device).manual_seed(0)
    for _, parameter, std in deviations(model, cfg):
        parameter.normal_(0, std, generator=generator)
    fill_constants(model)
    return model


def transformers(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Any, str]:
    """transformers' Llama with these weights and its best attention here, and that attention's name."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    attention, model = best_attention(device), evo(shape, device, dtype)
    theta = model.cfg.rope_base
    with device, _default(dtype), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        llama: Any = transformers_llama(model, attn_implementation=attention, **_rope(theta))
    # Its frequencies went to the model's dtype with everything else, in which far positions are no longer told apart.
    with device:
        llama.model.rotary_emb = LlamaRotaryEmbedding(config=llama.config)
    return llama, attention


def _rope(theta: float) -> dict[str, Any]:
    """How this transformers is told the base of the rotation."""
    from transformers import LlamaConfig

    if hasattr(LlamaConfig(), "rope_parameters"):
        return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    return {"rope_theta": theta}


def best_attention(device: torch.device) -> str:
    """The name by which transformers knows the fastest attention that is installed."""
    if device.type == "cuda":
        for name, module in (("flash_attention_3", "flash_attn_interface"), ("flash_attention_2", "flash_attn")):
            if importlib.util.find_spec(module) is not None:
                return name
    return "sdpa"


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# --- the device


class Device:
    """What is asked of a device; a CPU has neither a peak nor a memory of its own.

    Attributes:
        peak: operations a second at most in products of bfloat16, as its maker states them; None where not known.
    """

    def __init__(self, kind: str) -> None:
        self.torch = torch.device(kind)
        self.is_gpu = self.torch.type == "cuda"
        teraflops = known_peak(self.name, torch.bfloat16) if self.is_gpu else None
        self.peak = None if teraflops is None else 1e12 * teraflops

    @property
    def name(self) -> str:
        """Of the chip."""
        return torch.cuda.get_device_name(self.torch) if self.is_gpu else self.torch.type

    def wait(self) -> None:
        """Until all that was asked for is done."""
        if self.is_gpu:
            torch.cuda.synchronize(self.torch)

    def forget_peak(self) -> None:
        """Count the most memory from here on."""
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats(self.torch)

    def most_memory(self) -> int | None:
        """Bytes of tensors at most since then."""
        return torch.cuda.max_memory_allocated(self.torch) if self.is_gpu else None

    def release(self) -> None:
        """Give back what nothing holds any more."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()


def weight_bytes(model: nn.Module) -> int:
    """Of all that a step of generation reads: every weight but the embedding, of which it reads a row."""
    embedding = model.embedding if isinstance(model, Decoder) else model.get_input_embeddings()  # type: ignore[operator]
    assert isinstance(embedding, nn.Module)
    return sum(each.nbytes for each in model.parameters()) - sum(each.nbytes for each in embedding.parameters())

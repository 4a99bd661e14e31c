"""Decoding rows of gpu.py: whole calls, from ids of prompts to ids of continuations, the most likely token each time.

What a step has to do is to read every weight once; ``GB/s`` is the bytes of these over the time of a step, the prompt's
share of a call's time included, and so a lower bound of what is read.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import gpu_models
from benchmarks.gpu_models import SHAPES, Device, Shape, weight_bytes
from evo_core.generate.continuation import generate
from evo_core.generate.fixed import FixedDecoding
from evo_core.generate.forward import Forward

PROMPT, NEW = 512, 128
LEAST, MOST, SECONDS = 2, 10, 5.0
"""Calls that are measured: at least, at most, and until so much time has passed; one before them is not."""

Prompts = list[list[int]]
Run = Callable[[Prompts, int], list[list[int]]]


def measure(
    contestant: str, shape: str, batch: int, device: Device, *, prompt: int = PROMPT, new: int = NEW
) -> dict[str, Any]:
    """Figures of a row.

    Args:
        contestant: of `MAKERS`.
        batch: prompts of `prompt` tokens, each continued by `new`.
    """
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(SHAPES[shape].vocab, (batch, prompt), generator=generator).tolist()
    run, size = MAKERS[contestant](SHAPES[shape], device, batch, prompt + new)
    device.release()
    device.forget_peak()
    tokens, seconds = run(prompts, new), list[float]()  # also compiles, records, and finds its memory
    while len(seconds) < MOST and (len(seconds) < LEAST or sum(seconds) < SECONDS):
        device.wait()
        began = time.perf_counter()
        run(prompts, new)
        device.wait()
        seconds.append(time.perf_counter() - began)
    call = statistics.median(seconds)
    return {
        "seconds": call,
        "tokens_per_second": batch * new / call,
        "milliseconds": 1e3 * call / new,
        "bytes_per_second": size * new / call,
        "bytes": device.most_memory(),
        "tokens": tokens,
        "how": f"{batch} prompts of {prompt} and {new} new tokens",
    }


def alike(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """Share of the tokens up to where a row first differs. In bfloat16 two likely tokens change places by rounding, and
    all that follows is another text."""
    same = 0
    for mine, other in zip(ours, theirs, strict=True):
        differ = (place for place, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b)
        same += next(differ, len(mine))
    return same / sum(map(len, ours))


# --- contestants: a function that continues prompts, and the bytes of weights that each of its steps reads


def make_graph(shape: Shape, device: Device, batch: int, longest: int) -> tuple[Run, int]:
    """This repository's steps, of fixed tensors, on CUDA repeated as one graph."""
    model = gpu_models.evo(shape, device.torch, torch.bfloat16).eval()
    return FixedDecoding(Forward(model), batch, longest).greedy, weight_bytes(model)


def make_generate(shape: Shape, device: Device, batch: int, longest: int) -> tuple[Run, int]:
    """This repository's `generate`, which lets rows join and leave between steps."""
    model = gpu_models.evo(shape, device.torch, torch.bfloat16).eval()

    def run(prompts: Prompts, new: int) -> list[list[int]]:
        results = generate(model, None, prompts, max_new_tokens=new, do_sample=False, batch_size=batch)
        return [result.ids for result in results]

    return run, weight_bytes(model)


def make_transformers(
    shape: Shape, device: Device, batch: int, longest: int, cache: str = "dynamic"
) -> tuple[Run, int]:
    """transformers' `generate`; with a static cache it compiles its steps on CUDA, and repeats them as graphs."""
    llama, _ = gpu_models.transformers(shape, device.torch, torch.bfloat16)
    llama.eval()
    options: dict[str, Any] = {} if cache == "dynamic" else {"cache_implementation": cache}

    def run(prompts: Prompts, new: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=device.torch)
        limits = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = llama.generate(ids, attention_mask=torch.ones_like(ids), **limits, **options)
        return out[:, ids.shape[1] :].tolist()

    return run, weight_bytes(llama)


def make_static(shape: Shape, device: Device, batch: int, longest: int) -> tuple[Run, int]:
    """transformers' with a static cache."""
    return make_transformers(shape, device, batch, longest, "static")


MAKERS: dict[str, Callable[[Shape, Device, int, int], tuple[Run, int]]] = {
    "evo": make_graph,
    "evo generate": make_generate,
    "transformers": make_transformers,
    "transformers static": make_static,
}

"""Training rows of gpu.py: forward and backward of whole models, documents of one length.

What is counted is what the model needs, whoever computes it (evo_core/train/flops.py, after Chowdhery et al. 2022,
arXiv:2204.02311, appendix B, but for causal attention)::

    model flops = 6 w T + 12 L H d P,   P = n l (l + 1) / 2

w weights that a token is multiplied with (the head's, not the embedding's), T = n l tokens in n documents of l tokens,
L layers of H heads d wide, P pairs of a token and one that it sees: half of n l^2, since half of the matrix is masked.
``MFU`` is that over time and the maker's peak of dense bfloat16; blocks that are computed again for the backward pass
cost time and count nothing. The optimizer is not among it: AdamW's states and the master weights of 7 billion
parameters are 93 GB in float32, for which one GPU of 80 GB has no room; on several they are cut into shares
(docs/parallelism.md).

Each contestant keeps all that its blocks compute if that fits; else half of the blocks, then all, are computed again
(transformers: all, its gradient checkpointing), and the row says so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import gpu_models
from benchmarks.gpu_models import SHAPES, Device, Shape
from evo_core.config import ModelConfig
from evo_core.model import attention_kernel
from evo_core.train.flops import model_flops

WARM_UP, LEAST, MOST, SECONDS = 2, 3, 10, 6.0
"""Steps that are not measured; steps that are: at least, at most, and until so much time has passed."""

Step = Callable[[], Tensor]
Attempt = Callable[[], dict[str, Any]]


class DoesNotFit(Exception):
    """In no way that was tried."""


class Made(NamedTuple):
    """A contestant: its model, a forward pass to the loss, and in words how it is run."""

    model: nn.Module
    step: Step
    how: str


def measure(contestant: str, shape: str, length: int, documents: int, device: Device) -> dict[str, Any]:
    """Figures of a row, of the first way that fits.

    Args:
        contestant: of `MAKERS`.
        length: tokens of a document.

    Raises:
        DoesNotFit: none does.
    """
    make, shares = MAKERS[contestant]
    ids = batch(SHAPES[shape], length, documents, device.torch)
    needed = needed_flops(gpu_models.config(SHAPES[shape], torch.bfloat16), length, documents)

    def attempt(share: float) -> dict[str, Any]:
        return timed(make(SHAPES[shape], ids, device, share), device)

    found = first_that_fits([lambda share=share: attempt(share) for share in shares], device)  # type: ignore[misc]
    return found | rates(found["seconds"], length * documents, needed, device.peak)


def first_that_fits(attempts: Sequence[Attempt], device: Device) -> dict[str, Any]:
    """What the first attempt gives for which there is memory.

    Raises:
        DoesNotFit: there is for none.
    """
    for attempt in attempts:
        try:
            return attempt()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            said = str(error).partition(". GPU")[0]
        device.release()  # not above, where the error still holds the tensors of those whom it went through
    raise DoesNotFit(said)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory, be it to torch or to a library that it calls."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error) or "out of memory" in str(error)


def needed_flops(cfg: ModelConfig, length: int, documents: int) -> float:
    """Of a step, as above."""
    return model_flops(cfg).of(length * documents, documents * length * (length + 1) / 2)


def rates(seconds: float, tokens: int, needed: float, peak: float | None) -> dict[str, Any]:
    """Tokens a second, and the share of the peak where it is known."""
    return {"tokens_per_second": tokens / seconds, "mfu": None if peak is None else needed / seconds / peak}


def timed(made: Made, device: Device) -> dict[str, Any]:
    """The median step, the loss of the first and the most memory."""
    device.forget_peak()
    loss, seconds = 0.0, list[float]()
    for number in range(WARM_UP + MOST):
        made.model.zero_grad(set_to_none=True)
        device.wait()
        began = time.perf_counter()
        of_step = made.step()
        of_step.backward()
        device.wait()
        seconds.append(time.perf_counter() - began)
        loss = float(of_step.detach()) if number == 0 else loss
        if len(seconds) >= WARM_UP + LEAST and sum(seconds[WARM_UP:]) > SECONDS:
            break
    measured = seconds[WARM_UP:]
    return {
        "seconds": statistics.median(measured),
        "steps": len(measured),
        "loss": loss,
        "bytes": device.most_memory(),
        "how": made.how,
    }


# --- contestants


def batch(shape: Shape, length: int, documents: int, device: torch.device) -> Tensor:
    """Random ids [documents, length + 1]: a document has one more than targets."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(shape.vocab, (documents, length + 1), generator=generator).to(device)


def make_evo(shape: Shape, ids: Tensor, device: Device, share: float, *, compiled: bool = False) -> Made:
    """This repository's decoder, the documents in one pack."""
    model = gpu_models.evo(shape, device.torch, torch.bfloat16, share)
    if compiled:
        from evo_core.model import compile_blocks

        compile_blocks(model)
    documents, length = ids.shape[0], ids.shape[1] - 1
    input_ids, labels = ids[:, :-1].flatten(), ids[:, 1:].flatten()
    positions = torch.arange(length, device=device.torch).repeat(documents)
    ends = torch.arange(0, documents * length + 1, length, device=device.torch, dtype=torch.int32)

    def step() -> Tensor:
        loss = model(input_ids, positions, ends, labels=labels, max_seqlen=length).loss
        assert loss is not None
        return loss

    kernel, _ = attention_kernel(device.torch, torch.bfloat16, head_dim=model.cfg.head_dim)
    again = round(share * shape.layers)
    return Made(model, step, _how(kernel, again, shape.layers, compiled))


def make_transformers(shape: Shape, ids: Tensor, device: Device, share: float, *, compiled: bool = False) -> Made:
    """transformers' Llama, the documents as a batch without padding."""
    model, attention = gpu_models.transformers(shape, device.torch, torch.bfloat16)
    device.release()  # the weights that it was given
    model.train()
    if share:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if compiled:  # block by block, as ours is: as a whole it would make a mask, and attend over the whole square
        for layer in model.model.layers:
            layer.compile()
    input_ids, labels = ids[:, :-1].contiguous(), ids[:, 1:].flatten()

    def step() -> Tensor:
        logits = model(input_ids=input_ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), labels)

    return Made(model, step, _how(attention, round(share * shape.layers), shape.layers, compiled))


def _how(attention: str, again: int, layers: int, compiled: bool) -> str:
    return f"{attention}, {again} of {layers} blocks computed again{', compiled' if compiled else ''}"


def _compiled(make: Callable[..., Made]) -> Callable[..., Made]:
    return lambda shape, ids, device, share: make(shape, ids, device, share, compiled=True)


MAKERS: dict[str, tuple[Callable[..., Made], tuple[float, ...]]] = {
    "evo": (make_evo, (0.0, 0.5, 1.0)),
    "transformers": (make_transformers, (0.0, 1.0)),
    "evo compiled": (_compiled(make_evo), (0.0, 0.5, 1.0)),
    "transformers compiled": (_compiled(make_transformers), (0.0, 1.0)),
}
"""By name: what makes a contestant, and the shares of its blocks that are computed again, in the order to try."""


def products(size: int, device: Device) -> dict[str, Any]:
    """What this chip does in one product of square matrices of bfloat16: what MFU could come to at most."""
    a, b = (torch.randn(size, size, device=device.torch).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    seconds = list[float]()
    for _ in range(WARM_UP + MOST):
        device.wait()
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        device.wait()
        seconds.append(time.perf_counter() - began)
    found = statistics.median(seconds[WARM_UP:])
    flops = 2 * size**3 / found
    return {"seconds": found, "flops": flops, "mfu": None if device.peak is None else flops / device.peak}

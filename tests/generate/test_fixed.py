"""Steps whose tensors stay where they are give the tokens of ordinary ones, also when they are repeated unread.

That a graph on a GPU does is tested in tests/benchmarks/test_gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evo_core.generate import generate
from evo_core.generate.fixed import FixedCache, FixedDecoding
from evo_core.generate.forward import Forward
from evo_core.model import build_model
from tests.generate.models import decoder
from tests.generate.test_cache import FAMILIES, PROMPTS
from tests.model.configs import tiny

NEW = 8
FEW = ("INTERNLM2", "QWEN3")
SOME = [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in FAMILIES]


def expected(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    results = generate(model, None, prompts, max_new_tokens=NEW, do_sample=False, batch_size=len(prompts))
    return [result.ids for result in results]


@pytest.mark.parametrize("family", SOME)
def test_tokens_are_those_of_generate(family: str) -> None:
    model = decoder(**FAMILIES[family])
    fixed = FixedDecoding(Forward(model), len(PROMPTS), 20)
    assert fixed.greedy(PROMPTS, NEW) == expected(model, PROMPTS)


def test_another_batch_may_follow_in_the_same_memory() -> None:
    model = decoder(num_kv_attention_heads=2)
    fixed = FixedDecoding(Forward(model), 2, 64)
    addresses = [layer.data_ptr() for layer in fixed.cache.layers.values()]
    for prompts in ([[1, 7, 30, 4], [5] * 20], [[3], [8, 8]], [[9] * 7, [1] * 7]):
        assert fixed.greedy(prompts, NEW) == expected(model, prompts)
    assert [layer.data_ptr() for layer in fixed.cache.layers.values()] == addresses


class Recording(TorchDispatchMode):
    """Notes every operation, and repeats them on the very same tensors, as a CUDA graph does: what Python computed
    in between stays as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def repeat(self) -> None:
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.mark.parametrize("family", FEW)
@torch.inference_mode()
def test_a_step_that_is_recorded_once_is_every_step(family: str) -> None:
    model = decoder(**FAMILIES[family])
    fixed = FixedDecoding(Forward(model), len(PROMPTS), 40)
    logits = fixed.begin(PROMPTS)
    found, recording, recorded = [logits.argmax(-1)], Recording(), torch.empty(0)
    for number in range(NEW - 1):
        fixed.tokens.copy_(found[-1])
        if number == 0:
            with recording:
                recorded = fixed.forward.step(fixed.tokens, fixed.cache)
        else:
            recording.repeat()
        found.append(recorded.argmax(-1))
    assert torch.stack(found, 1).tolist() == expected(model, PROMPTS)


@torch.inference_mode()
def test_a_step_asks_the_device_for_nothing() -> None:
    """With tensors that have no values: reading one of them, or one on the CPU among them, is an error."""
    model = build_model(tiny(num_kv_attention_heads=2, dtype="torch.bfloat16"), device="meta").eval()
    fixed = FixedDecoding(Forward(model), 3, 40)
    logits = fixed.forward.step(fixed.tokens, fixed.cache)
    assert logits.shape == (3, 61) and logits.device.type == "meta"


def test_what_does_not_fit_is_refused() -> None:
    fixed = FixedDecoding(Forward(decoder()), 2, 10)
    assert fixed.cache.slots == 64
    with pytest.raises(ValueError, match="3 rows of at most 1 tokens do not fit into 2 rows of 64 slots"):
        fixed.begin([[1], [2], [3]])
    with pytest.raises(ValueError, match="2 rows of at most 65 tokens do not fit"):
        fixed.begin([[1], [2] * 65])
    fixed.begin([[1], [2] * 63])
    fixed.step(torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="all 64 slots are taken"):
        fixed.step(torch.tensor([1, 1]))


def test_a_rotation_that_depends_on_the_length_is_refused() -> None:
    model = decoder(use_dynamic_ntk_rope=True, max_position_embeddings=16)
    FixedCache(model, 1, 16)
    with pytest.raises(ValueError, match="use_dynamic_ntk_rope"):
        FixedCache(model, 1, 17)


def test_no_text_grows_beyond_where_its_rotation_would_change() -> None:
    """16 slots are 64 in memory."""
    fixed = FixedDecoding(Forward(decoder(use_dynamic_ntk_rope=True, max_position_embeddings=16)), 1, 16)
    fixed.begin([[1] * 15])
    fixed.step(torch.tensor([1]))
    with pytest.raises(ValueError, match="all 16 slots are taken"):
        fixed.step(torch.tensor([1]))
    with pytest.raises(ValueError, match="1 rows of at most 17 tokens do not fit into 1 rows of 16 slots"):
        fixed.begin([[1] * 17])


def test_a_model_that_was_trained_a_moment_ago_drops_nothing() -> None:
    model = decoder(drop_rate=0.5).train()
    fixed = FixedDecoding(Forward(model), len(PROMPTS), 20)
    assert fixed.greedy(PROMPTS, NEW) == expected(model, PROMPTS)
    assert model.training


def test_a_prompt_without_tokens_is_refused() -> None:
    for prompts in ([[5, 6, 7], []], [[], [5]]):
        with pytest.raises(ValueError, match="a prompt has no token"):
            FixedDecoding(Forward(decoder()), 2, 20).greedy(prompts, 4)


def test_no_new_tokens_are_none() -> None:
    assert FixedDecoding(Forward(decoder()), len(PROMPTS), 20).greedy(PROMPTS, 0) == [[] for _ in PROMPTS]

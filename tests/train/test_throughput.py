"""Speed by internevo's formula."""

from __future__ import annotations

import pytest

from evo_core.train.throughput import Throughput


def test_tflops_of_the_original_log() -> None:
    """Its step 1: 8 ranks, 7B, 131072 tokens a step at 4274.45 tokens per GPU and second."""
    speed = Throughput(
        world_size=8,
        dp=8,
        seq_len=2048,
        micro_bsz=2,
        hidden_size=4096,
        num_layers=32,
        vocab_size=103168,
        mlp_ratio=8 / 3,
        recomputes=False,
    )
    seconds = speed.step_tokens(4) / 8 / 4274.45
    assert speed.step_tokens(4) == 131072
    assert speed.tgs(4, seconds) == pytest.approx(4274.45)
    assert speed.tflops(4, seconds) == pytest.approx(189.83371103277346, rel=1e-5)  # tgs is rounded there

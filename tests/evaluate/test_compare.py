"""Standard errors of held-out scores, and two results side by side."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from evo_core.evaluate.blocks import BLOCKS, block_sums, stderr
from evo_core.evaluate.compare import compare, comparison_table
from evo_core.evaluate.holdout import score


def _packed(sequences: list[list[int]], nll: list[list[float]]) -> torch.Tensor:
    ids = torch.tensor([token for sequence in sequences for token in sequence])
    labels = torch.ones_like(ids)
    values = torch.tensor([value for values in nll for value in values])
    cu_seqlens = torch.tensor([0, *map(len, sequences)]).cumsum(0).to(torch.int32)
    return block_sums(values, values < 1, labels, ids, cu_seqlens)


def test_blocks_depend_on_the_sequences_alone() -> None:
    sequences = [[5, 6], [7], [1, 2, 3], [60, 60]]
    nll = [[0.5, 2.0], [1.5], [0.25, 3.0, 4.0], [8.0, 0.125]]
    together = _packed(sequences, nll)
    order = [2, 0, 3, 1]
    assert torch.equal(together, _packed([sequences[i] for i in order], [nll[i] for i in order]))
    apart = sum(_packed([s], [n]) for s, n in zip(sequences, nll, strict=True))
    assert torch.equal(together, apart)
    # By hand: (sum of ids + length) mod 64 is 13, 8, 9 and 58.
    assert together[0].nonzero().flatten().tolist() == [8, 9, 13, 58]
    assert together[:, 9].tolist() == [7.25, 1.0, 3.0]
    assert together.sum(1).tolist() == [19.375, 3.0, 8.0]


def test_the_error_is_that_of_repeated_samples() -> None:
    """Blocks drawn anew many times: the spread of the mean is what one draw's error says."""
    random = np.random.RandomState(0)
    means, errors = [], []
    for _ in range(400):
        counts = random.randint(50, 150, BLOCKS).astype(float)
        sums = counts * (3 + 0.2 * random.randn(BLOCKS))
        means.append(sums.sum() / counts.sum())
        errors.append(stderr(sums.tolist(), counts.tolist()))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_too_few_blocks_have_no_error() -> None:
    assert stderr([1.0, 0.0], [2.0, 0.0]) is None


def _results(shift: float, seed: int = 0) -> dict[str, Any]:
    random = np.random.RandomState(0)
    counts = random.randint(50, 150, BLOCKS).astype(float)
    nll = counts * (3 + random.randn(BLOCKS)) + shift * counts + 0.01 * np.random.RandomState(seed).randn(BLOCKS)
    scores = {"en": score(nll.tolist(), (counts // 2).tolist(), counts.tolist())}
    return {"checkpoint": f"ckpt/{seed}", "step": seed, "model": scores}


def test_the_text_cancels_in_a_paired_difference() -> None:
    loss, acc = compare(_results(0.0, 1), _results(-0.02, 2))
    assert (loss.of, loss.metric, loss.paired, loss.same) == ("en", "loss", True, True)
    assert loss.difference == pytest.approx(-0.02, abs=1e-3)
    assert loss.a_stderr is not None and loss.stderr is not None
    assert loss.stderr < loss.a_stderr / 100
    assert (acc.difference, acc.stderr) == (0, 0)


def test_other_text_is_told_apart() -> None:
    a, b = _results(0.0), _results(0.0)
    b["model"]["en"]["blocks"]["targets"] = [n + 1 for n in b["model"]["en"]["blocks"]["targets"]]
    b["model"]["cn"] = b["model"]["en"]
    loss = compare(a, b)[0]
    assert not loss.paired and not loss.same
    assert loss.stderr == pytest.approx(math.hypot(loss.a_stderr or 0, loss.b_stderr or 0))
    shown = comparison_table(a, b)
    assert "not the same data" in shown
    assert shown.endswith("only in B: cn")


def test_a_result_without_errors() -> None:
    """As an earlier version wrote them."""
    old = {"model": {"en": {"loss": 2.0, "perplexity": 7.4, "acc": 0.5, "tokens": 10}}}
    loss = compare(old, old)[0]
    assert (loss.difference, loss.stderr, loss.same) == (0.0, None, False)
    assert "2.0000" in comparison_table(old, old)

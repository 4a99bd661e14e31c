"""Every way of the optimizer of carrying a step out: losses are those of one process.

How far they may be off is a matter of the type of the parameters. Micro-batches are the same wherever they are
computed, and so are their gradients, to the bit. What differs is the order in which they are summed, over micro-batches
and ranks, in float32 or wider: a relative 1e-7 a step.

- float32: that is all, and 20 steps carry it on. Losses are within 1e-5.
- bfloat16, float16: a master value that is off by 1e-7 is rounded to the neighbouring parameter once in a while, which
  is 2^-8 or 2^-11 of it away. A few of thousands of parameters are, and a loss, of which a bfloat16 hidden state is no
  better than 2^-8, follows. Losses are within 1e-2 in bfloat16 and 2e-3 in float16.

Which of the settings it is does not matter at all: on the same ranks, whatever overlaps with what and however much is
gathered at a time, the sums are formed in the same order, and losses are the same to the bit.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_on_ranks
from tests.train.jobs import job, losses, run

STEPS = 20
WITHIN = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}

SETTINGS = [
    {"overlap_sync_grad": grad, "overlap_sync_param": param, "reduce_bucket_size": 3000, "all_gather_size": gathered}
    for grad, param, gathered in itertools.product((False, True), (False, True), (900, 512 * 1024 * 1024))
]
NONE_AND_BOTH = [SETTINGS[0], SETTINGS[6]]
EVERY = [
    pytest.param(dtype, ranks, zero1, SETTINGS, marks=pytest.mark.slow, id=f"{dtype}-{ranks}-{zero1}")
    for dtype in WITHIN
    for ranks in (1, 2, 4)
    for zero1 in (1, 2, 4)
    if zero1 <= ranks
]


def curves(folder: Path, dtype: str, ranks: int, zero1: int, settings: list[dict[str, Any]]) -> list[list[float]]:
    """The losses of a job with each of some settings of the optimizer."""
    cfgs = [
        job(
            folder,
            model__dtype=f"torch.{dtype}",
            data__total_steps=STEPS,
            ckpt__enable_save_ckpt=False,
            parallel={"zero1": {"size": zero1}},
            hybrid_zero_optimizer={"clip_grad_norm": 1.0, **each},
            grad_scaler={"fp16": {"initial_scale": 1024}},
        )
        for each in settings
    ]

    def every_one() -> None:
        for number, cfg in enumerate(cfgs):
            run(cfg, folder / f"{ranks}-{zero1}-{number}")

    run_on_ranks(every_one, ranks, timeout=300.0)
    return [losses(folder / f"{ranks}-{zero1}-{number}") for number in range(len(cfgs))]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("dtype", "ranks", "zero1", "settings"), [pytest.param("bfloat16", 2, 2, NONE_AND_BOTH, id="short"), *EVERY]
)
def test_every_setting_gives_the_losses_of_one_process(
    tmp_path: Path, dtype: str, ranks: int, zero1: int, settings: list[dict[str, Any]]
) -> None:
    (one,) = curves(tmp_path / "one", dtype, 1, 1, [{}])
    first, *others = curves(tmp_path / "many", dtype, ranks, zero1, settings)
    assert len(first) == STEPS and first[-1] < first[0] - 0.3
    assert first == pytest.approx(one, rel=WITHIN[dtype])
    assert all(other == first for other in others)

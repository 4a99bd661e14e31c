"""The sums that metrics are made of."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from evo_core.data import BinWriter
from evo_core.evaluate.perplexity import perplexity
from evo_core.evaluate.sums import sums_by_group
from evo_core.train.metrics import StepTotals, segments
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, job, run


def test_sums_by_group() -> None:
    nll = torch.tensor([1.0, 2.0, 4.0, 0.0])
    hit = torch.tensor([True, False, True, False])
    labels, kinds = torch.tensor([5, 6, 7, -100]), torch.tensor([0, 2, 2, 1])
    assert sums_by_group(nll, hit, labels, kinds, 3).tolist() == [[1, 0, 6], [1, 0, 1], [1, 0, 2]]


def test_totals_travel_in_one_vector() -> None:
    totals, others = (StepTotals(("cn", "en"), torch.device("cpu")) for _ in range(2))
    for each, stop_file in ((totals, -7), (others, 0)):  # of two ranks one reads the stop file
        each.tell(stop=True, stop_file=stop_file)
        each.add_loss(torch.tensor(2.0))
        each.add_tokens(torch.tensor([3.0]), torch.tensor([True]), torch.tensor([1]), torch.tensor([1]))
    totals.vector += others.vector
    assert (totals.stop, totals.unread, totals.stop_file, totals.loss) == (True, False, -7, 4.0)
    assert totals.quality() == {
        "acc": 1.0,
        "perplexity": pytest.approx(math.exp(3)),
        "loss/en": 3.0,
        "acc/en": 1.0,
        "tokens/en": 2,
    }


@pytest.mark.parametrize("stop", [False, True])
def test_that_a_batch_could_not_be_read_is_told_beside_a_signal(stop: bool) -> None:
    totals, others = (StepTotals(("en",), torch.device("cpu")) for _ in range(2))
    totals.tell(stop=False, stop_file=0, unread=True)
    others.tell(stop=stop, stop_file=0)
    totals.vector += 1000 * others.vector
    assert (totals.unread, totals.stop) == (True, stop)


def test_loss_accuracy_and_perplexity_are_of_one_mean() -> None:
    """Over micro-batches, each a mean over its targets; one without a target counts as 0, as in InternEvo."""
    totals = StepTotals(("cn", "en"), torch.device("cpu"))
    micro_batches = [([1.0, 3.0, 0.0], [True, False, False], [5, 6, -100]), ([0.0] * 3, [False] * 3, [-100] * 3)]
    micro_batches.append(([6.0, 0.0, 0.0], [True, False, False], [5, -100, -100]))
    for nll, hit, labels in micro_batches:
        targets = max(sum(label != -100 for label in labels), 1)
        totals.add_loss(torch.tensor(sum(nll) / targets / 3))
        totals.add_tokens(torch.tensor(nll), torch.tensor(hit), torch.tensor(labels), torch.tensor([0, 1, 1]))
    assert totals.loss == pytest.approx((2 + 0 + 6) / 3)
    quality = totals.quality()
    assert quality["perplexity"] == pytest.approx(math.exp(totals.loss))
    assert quality["acc"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert (quality["loss/cn"], quality["tokens/cn"], quality["acc/en"]) == (
        3.5,
        2,
        0.0,
    )  # by tokens


def test_a_run_on_targets_that_are_thin_on_the_ground_says_one_loss(tmp_path: Path) -> None:
    """Three of four micro-batches of a step have no target, on one rank as on two."""
    with BinWriter(tmp_path / "data" / "en" / "t.bin") as writer:
        for number in range(64):
            ids = np.arange(4, 36)
            writer.write(ids if number % 4 == 0 else -ids)  # negative ids are read and not trained on
    changes = {"data__total_steps": 2, "data__train_folder": str(tmp_path / "data"), "ckpt__enable_save_ckpt": False}
    (tmp_path / "valid").mkdir()
    cfg = job(tmp_path, **changes)
    run(cfg, tmp_path / "one")
    run_on_ranks(run, 2, cfg, tmp_path / "two")
    for record, other in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert 0 < record["tokens/en"] < 96
        assert record["perplexity"] == pytest.approx(math.exp(record["loss"]), rel=1e-9)
        assert math.log(record["perplexity"]) < record["loss/en"]
        assert other["perplexity"] == pytest.approx(record["perplexity"], rel=1e-9)


def test_segments() -> None:
    cut = segments([torch.tensor([0, 5, 8], dtype=torch.int32), torch.tensor([0, 8], dtype=torch.int32)])
    assert cut == {"num_samples_in_batch": 3, "largest_length": 8, "largest_batch": 2, "smallest_batch": 1}


def test_perplexity_of_a_hopeless_model() -> None:
    assert perplexity(1000.0) == math.inf

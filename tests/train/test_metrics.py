"""The log line, the tflops formula and the sums that metrics are made of."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from evo_core.data import BinWriter
from evo_core.evaluate.perplexity import perplexity
from evo_core.evaluate.sums import sums_by_group
from evo_core.train.metrics import LOG_FIELDS, StepTotals, Throughput, log_line, segments
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, job, run

ORIGINAL = (
    "tflops=189.83371103277346,step=1,loss=11.613704681396484,tgs (tokens/gpu/second)=4274.45,"
    "lr=6.000000000000001e-07,loss_scale=65536.0,grad_norm=65.150786641452,micro_num=4,num_consumed_tokens=262144,"
    "inf_nan_skip_batches=0,num_samples_in_batch=16,largest_length=2048,largest_batch=5,smallest_batch=3,"
    "adam_beta2=0.95,fwd_bwd_time=3.67"
)


def parse(line: str) -> dict[str, str]:
    return dict(field.split("=") for field in line.split(","))


def test_the_fields_are_the_originals_in_its_order() -> None:
    assert list(LOG_FIELDS) == list(parse(ORIGINAL))


def test_a_runs_log_line_parses_and_begins_with_the_originals_fields(tmp_path: Path) -> None:
    run(job(tmp_path, data__total_steps=2, ckpt__enable_save_ckpt=False), tmp_path / "run")
    lines = re.findall(
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\tINFO metric_log\.py:\d+ in step -- (tflops=.*)$",
        (tmp_path / "run" / "train.log").read_text(),
        re.MULTILINE,
    )
    assert len(lines) == 2
    for step, line in enumerate(lines):
        fields = parse(line)
        assert list(fields)[: len(LOG_FIELDS)] == list(LOG_FIELDS)
        assert fields["step"] == str(step)
        assert {"acc", "perplexity", "loss/en", "tokens/en"} <= set(fields)
        assert all(math.isfinite(float(value)) for value in fields.values())
        assert int(fields["num_consumed_tokens"]) == 128 * (step + 1)


def test_log_every(tmp_path: Path) -> None:
    cfg = job(tmp_path, data__total_steps=8, data__log_every=3, ckpt__enable_save_ckpt=False)
    run(cfg, tmp_path / "run")
    steps = re.findall(r"tflops=.*?,step=(\d+)", (tmp_path / "run" / "train.log").read_text())
    assert steps == ["0", "3", "6", "7"]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 8


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


def test_log_line_puts_our_fields_after() -> None:
    assert log_line({"acc": 1, "lr": 0.5, "step": 3, "time": 9.0}) == "step=3,lr=0.5,acc=1"


def test_sums_by_group() -> None:
    nll = torch.tensor([1.0, 2.0, 4.0, 0.0])
    hit = torch.tensor([True, False, True, False])
    labels, kinds = torch.tensor([5, 6, 7, -100]), torch.tensor([0, 2, 2, 1])
    assert sums_by_group(nll, hit, labels, kinds, 3).tolist() == [[1, 0, 6], [1, 0, 1], [1, 0, 2]]


def test_totals_travel_in_one_vector() -> None:
    totals = StepTotals(("cn", "en"), torch.device("cpu"))
    totals.tell(stop=True, stop_file=-7)
    totals.add_loss(torch.tensor(2.0))
    totals.add_tokens(torch.tensor([3.0]), torch.tensor([True]), torch.tensor([1]), torch.tensor([1]))
    totals.vector += totals.vector.clone()  # as two ranks, of which one reads the stop file, would sum it
    totals.vector[1] /= 2
    assert (totals.stop, totals.stop_file, totals.loss) == (True, -7, 4.0)
    assert totals.quality() == {
        "acc": 1.0,
        "perplexity": pytest.approx(math.exp(3)),
        "loss/en": 3.0,
        "acc/en": 1.0,
        "tokens/en": 2,
    }


def test_loss_accuracy_and_perplexity_are_of_one_mean() -> None:
    """Over micro-batches, each a mean over its targets; one without a target counts as 0, as in the original."""
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

"""The log line, the tflops formula and the sums that metrics are made of."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from evo_core.train.metrics import LOG_FIELDS, StepTotals, Throughput, log_line, perplexity, segments, sums_by_type
from tests.train.jobs import job, run

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
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\tINFO journal\.py:\d+ in step -- (tflops=.*)$",
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


def test_sums_by_type() -> None:
    nll = torch.tensor([1.0, 2.0, 4.0, 0.0])
    hit = torch.tensor([True, False, True, False])
    labels, kinds = torch.tensor([5, 6, 7, -100]), torch.tensor([0, 2, 2, 1])
    assert sums_by_type(nll, hit, labels, kinds, 3).tolist() == [[1, 0, 6], [1, 0, 1], [1, 0, 2]]


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


def test_segments() -> None:
    cut = segments([torch.tensor([0, 5, 8], dtype=torch.int32), torch.tensor([0, 8], dtype=torch.int32)])
    assert cut == {"num_samples_in_batch": 3, "largest_length": 8, "largest_batch": 2, "smallest_batch": 1}


def test_perplexity_of_a_hopeless_model() -> None:
    assert perplexity(1000.0) == math.inf

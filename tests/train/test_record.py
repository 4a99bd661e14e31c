"""The record of a step, trained on or skipped, as each reader gets it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evo_core.train.checkpointing import Asked
from evo_core.train.record import LOG_FIELDS, Measured, StepRecord, log_line

ORIGINAL = (
    "tflops=189.83371103277346,step=1,loss=11.613704681396484,tgs (tokens/gpu/second)=4274.45,"
    "lr=6.000000000000001e-07,loss_scale=65536.0,grad_norm=65.150786641452,micro_num=4,num_consumed_tokens=262144,"
    "inf_nan_skip_batches=0,num_samples_in_batch=16,largest_length=2048,largest_batch=5,smallest_batch=3,"
    "adam_beta2=0.95,fwd_bwd_time=3.67"
)

MEASURED = Measured(
    loss=2.5,
    grad_norm=0.75,
    lr=1e-3,
    beta2=0.95,
    loss_scale=65536.0,
    micro_num=4,
    segments={"num_samples_in_batch": 9, "largest_length": 32, "largest_batch": 3, "smallest_batch": 1},
    by_type={"acc": 0.5, "perplexity": 12.0, "loss/en": 2.4, "tokens/en": 120},
    speed={},
    seconds=0.123456,
    fwd_bwd_seconds=0.1049,
    tflops=1.5,
    tgs=1036.815,
    tokens_per_second=1036.81,
    time=1.7e9,
)

TRAINED: dict[str, Any] = {
    "tflops": 1.5,
    "step": 3,
    "loss": 2.5,
    "tgs (tokens/gpu/second)": 1036.82,
    "lr": 1e-3,
    "loss_scale": 65536.0,
    "grad_norm": 0.75,
    "micro_num": 4,
    "num_consumed_tokens": 512,
    "inf_nan_skip_batches": 1,
    "num_samples_in_batch": 9,
    "largest_length": 32,
    "largest_batch": 3,
    "smallest_batch": 1,
    "adam_beta2": 0.95,
    "fwd_bwd_time": 0.1,
    "acc": 0.5,
    "perplexity": 12.0,
    "loss/en": 2.4,
    "tokens/en": 120,
    "tokens_per_second": 1036.8,
    "step_time": 0.1235,
    "time": 1.7e9,
}


def parse(line: str) -> dict[str, str]:
    return dict(field.split("=") for field in line.split(","))


def test_the_fields_are_the_originals_in_its_order() -> None:
    assert list(LOG_FIELDS) == list(parse(ORIGINAL))


def test_log_line_puts_our_fields_after() -> None:
    assert log_line({"acc": 1, "lr": 0.5, "step": 3, "time": 9.0}) == "step=3,lr=0.5,acc=1"


def test_a_step_that_was_trained_on() -> None:
    record = StepRecord(3, 512, 1, MEASURED)
    assert list(record.fields().items()) == list(TRAINED.items())  # the order of the file, too
    fields = parse(record.log_line())
    assert list(fields)[: len(LOG_FIELDS)] == list(LOG_FIELDS)
    assert (fields["loss"], fields["tokens_per_second"], "time" in fields) == ("2.5", "1036.8", False)
    assert record.progress() == {"loss": 2.5, "tokens": 512, "tokens_per_second": 1036.8}


def test_speed_is_on_the_curve_and_its_averages_not_in_the_log_line() -> None:
    speed = {"mfu": 0.5, "hfu": 0.625, "tgs/last_tgs_1": 1036.82, "tgs/tgs_all": 900.0}
    record = StepRecord(3, 512, 1, replace(MEASURED, speed=speed))
    before, after = list(TRAINED)[:-3], list(TRAINED)[-3:]
    assert list(record.fields()) == [*before, *speed, *after]
    plain = StepRecord(3, 512, 1, MEASURED).log_line()
    assert record.log_line() == plain.replace(",tokens_per_second", ",mfu=0.5,hfu=0.625,tokens_per_second")


def test_a_step_whose_batch_was_skipped() -> None:
    record = StepRecord(3, 512, 1)
    assert record.fields() == {
        "step": 3,
        "loss": None,
        "num_consumed_tokens": 512,
        "inf_nan_skip_batches": 1,
        "skip_batches": True,
    }
    assert record.log_line() == "step=3 is in skip_batches: its batch is drawn and not trained on"
    assert record.loss is None
    assert record.asked == Asked()


def test_scores_come_last_in_both() -> None:
    scores = {"val/en_loss": 2.0, "val/en_acc": 0.5}
    for measured in (MEASURED, None):
        record = StepRecord(3, 512, 1, measured, scores)
        assert list(record.fields())[-2:] == list(scores)

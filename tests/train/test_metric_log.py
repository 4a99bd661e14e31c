"""What a run shows of its steps: log lines that internevo's tools read."""

from __future__ import annotations

import math
import re
from pathlib import Path

from evo_core.train.record import LOG_FIELDS
from tests.train.jobs import job, run
from tests.train.test_record import parse


def test_a_runs_log_line_parses_and_begins_with_the_originals_fields(tmp_path: Path) -> None:
    run(job(tmp_path, data__total_steps=2, ckpt__enable_save_ckpt=False), tmp_path / "run")
    lines = re.findall(
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\tINFO metric_log\.py:\d+ in show -- (tflops=.*)$",
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

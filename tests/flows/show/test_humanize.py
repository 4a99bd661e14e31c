"""Numbers as people read them."""

from __future__ import annotations

import pytest

from flows.show import humanize


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (950, "950"),
        (9999, "9999"),
        (2896.4, "2896"),
        (12_345, "12.3k"),
        (3_100_000, "3.1M"),
        (7e9, "7G"),
        (1.5, "1.5"),
    ],
)
def test_counts(number: float, text: str) -> None:
    assert humanize.count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (2.34, "2.3s"), (59.6, "1m 0s"), (65, "1m 5s"), (3725, "1h 2m"), (90_000, "1d 1h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert humanize.duration(seconds) == text


def test_sizes() -> None:
    assert [humanize.size(n) for n in (12, 1500, 12_345_678, 3e9)] == ["12 B", "1.5 kB", "12.3 MB", "3 GB"]


def test_a_progress_report_in_one_line() -> None:
    progress = {"done": 120, "total": 400, "unit": "steps", "loss": 5.3214, "tokens_per_second": 12345.6}
    assert (
        humanize.progress_line(progress | {"eta_seconds": 65})
        == "120/400 steps · loss 5.321 · 12.3k tokens/s · 1m 5s left"
    )
    assert humanize.progress_line({"done": 3, "total": 4, "unit": "files"}) == "3/4 files"


def test_a_progress_report_without_a_number() -> None:
    assert humanize.progress_line({"done": 0, "total": 0, "unit": "steps", "loss": None}) == "0/0 steps"
    assert humanize.percent({"done": 3, "total": 0}) == 0.0
    assert humanize.percent({"done": 5, "total": 4}) == 100.0


def test_statistics_leave_out_what_is_no_number() -> None:
    assert humanize.statistics_line(
        {"tokens": 3_100_000, "loss": 4.2134, "files": {}, "done": True, "bytes": 2000}
    ) == ("tokens 3.1M · loss 4.213 · bytes 2 kB")

"""Scores of one run on the same data are one table; those on other data are another."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from rich.console import Console

from flows.pipeline.engine import run_plan
from flows.pipeline.plan import make_plan
from flows.pipeline.schema import load_pipeline
from flows.show import markdown
from flows.show.observers import Observers
from flows.show.report import print_report, write_report
from flows.show.score_tables import score_tables, table_with
from tasks.store import open_store
from tests.flows.show.conftest import Run

TEXT = """\
pipeline: compared
steps:
  raw: {uses: "tests.flows.orchestration.kinds:Text", params: {file: text.txt}}
  other: {uses: "tests.flows.orchestration.kinds:Text", params: {file: other.txt}}
  before:
    uses: tests.flows.show.kinds:ScoresOnData
    needs: {data: raw}
    params: {loss: 5, baselines: false}
  scores: {uses: "tests.flows.show.kinds:ScoresOnData", needs: {data: raw}, params: {loss: 4}}
  elsewhere: {uses: "tests.flows.show.kinds:ScoresOnData", needs: {data: other}, params: {loss: 3}}
"""


def compared(folder: Path) -> Run:
    (folder / "p.yaml").write_text(TEXT)
    for name in ("text", "other"):
        (folder / f"{name}.txt").write_text(name)
    store = open_store(folder / "store")
    plan = make_plan(load_pipeline(folder / "p.yaml"), store)
    return Run(plan, run_plan(plan, store, Observers(), threading.Event()), store)


def test_before_and_after_stand_side_by_side(tmp_path: Path) -> None:
    run = compared(tmp_path)
    console = Console(width=120)
    with console.capture() as capture:
        print_report(run.plan, run.refs, run.store, console)
    text = capture.get()
    assert re.search(r"type +before +scores +unigram +tokens", text)
    assert re.search(r"en +5\.000 \(148\.4\) +4\.000 \(54\.6\) +7\.000 \(1096\.6\) +1", text)
    assert re.search(r"type +model +unigram +tokens\nen +3\.000", text)
    assert text.count("held-out loss") == 2

    page = write_report(run.plan, run.refs, run.store).read_text()
    assert page.count("<h2>Held-out text</h2>") == 2
    assert "before: accuracy" in page and "scores: loss" in page

    step = run.plan.step("scores")
    table = table_with(step, run.plan, {"before"}, run.store)
    card = markdown.card(step, run.refs["scores"], run.store.artifact(step.kind.name, step.key), {}, table)
    assert "| en | 5.0000 (148.4) | 4.0000 (54.6) | 7.0000 (1096.6) | 25.0% | 25.0% |" in card
    assert list(markdown.score_rows(table)[0])[1:3] == ["before: loss (perplexity)", "scores: loss (perplexity)"]


def test_scores_that_are_not_made_yet_leave_no_column(tmp_path: Path) -> None:
    run = compared(tmp_path)
    assert [table.columns for table in score_tables(run.plan, {"scores"}, run.store)] == [("model", "unigram")]
    assert table_with(run.plan.step("before"), run.plan, set(), run.store).columns == ("model",)

"""Markdown for Prefect's pages."""

from __future__ import annotations

import re

from flows.show import markdown
from tests.flows.show.conftest import Run


def card(run: Run, name: str, pages: dict[str, object] | None = None) -> str:
    step = run.plan.step(name)
    return markdown.card(step, run.refs[name], run.store.artifact(name, step.key), pages or {})


def test_page_keys_are_what_prefect_allows(finished: Run) -> None:
    assert markdown.page_key(finished.plan, "my_step", "progress") == "small-my-step-progress"
    assert re.fullmatch(r"[a-z0-9-]+", markdown.page_key(finished.plan, "Ünder_score"))


def test_the_plan_as_rows(finished: Run) -> None:
    rows = markdown.plan_rows(finished.plan)
    assert rows[0] == {
        "step": "raw",
        "kind": "test.text",
        "key": finished.plan.steps[0].key[:12],
        "action": "run",
        "why": "never made before",
    }


def test_a_models_card_shows_its_curve_numbers_and_inputs(finished: Run) -> None:
    text = card(finished, "model", {"raw": "1234"})
    assert "![training loss](data:image/svg+xml;base64," in text
    assert "| numbers | steps 60 · tokens 30.7k" in text
    assert "(/artifacts/artifact/1234)" in text


def test_a_scores_card_has_a_row_for_each_type_and_a_column_for_each_predictor(finished: Run) -> None:
    text = card(finished, "scores")
    assert "| type | model: loss (perplexity) | unigram: loss (perplexity) | bigram: loss (perplexity) |" in text
    assert "| cn | 4.0000 (54.6) | 6.5000 (665.1) | 5.5000 (244.7) | 30.0% | 12.3k |" in text


def test_samples_cannot_break_out_of_their_block(finished: Run) -> None:
    text = card(finished, "samples")
    assert "````text\ndef __init__(self⟶, name):" in text
    assert text.count("````") == 2


def test_lineage_links_every_artifact_to_what_it_was_made_from(finished: Run) -> None:
    pages = {step.name: f"id-of-{step.name}" for step in finished.plan.steps}
    text = markdown.lineage(finished.plan, finished.refs, pages)
    row = next(line for line in text.splitlines() if line.startswith("| [samples-"))
    assert "(/artifacts/artifact/id-of-samples)" in row and "(/artifacts/artifact/id-of-model)" in row
    assert finished.refs["samples"].uri in row


def test_a_step_without_an_artifact_is_in_the_lineage_too(finished: Run) -> None:
    assert markdown.lineage(finished.plan, {}, {}).count("not made") == 5

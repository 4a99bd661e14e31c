"""A layout of their own for the steps that read a model: checked when planned, and in no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from evo_core.errors import ConfigError
from evo_core.weights import write_weights
from flows.pipeline.plan import Plan, make_plan
from flows.pipeline.schema import load_pipeline
from tasks.store import open_store
from tests.weights.models import model, weights

TEXT = """\
pipeline: layouts
steps:
  model: {uses: model.import, params: {source: theirs}}
  samples: {uses: generate.samples, needs: {model: model}, params: {prompts: [once]}}
  asked: {uses: eval.tasks, needs: {model: model}, params: {tasks: questions}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("lm_eval", reason='needs lm-eval (pip install "evo-lm[eval]")')
    write_weights(weights(model("QWEN3", vocab_size=300)), tmp_path / "theirs", "hf")
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions" / "a.yaml").write_text("task: a")
    (tmp_path / "layouts.yaml").write_text(TEXT)
    return tmp_path


def plan(folder: Path, *overrides: str) -> Plan:
    return make_plan(load_pipeline(folder / "layouts.yaml", overrides), open_store(folder / "store"))


@pytest.mark.parametrize("step", ["samples", "asked"])
def test_no_layout_is_in_the_key(folder: Path, step: str) -> None:
    alone = plan(folder).step(step)
    for layout, options in (
        ("{tensor: 2}", "--tensor 2 --pipeline 1"),
        ("{tensor: {size: 4}}", "--tensor 4 --pipeline 1"),
        ("{pipeline: 2}", "--tensor 1 --pipeline 2"),
        ("{tensor: 2, pipeline: {size: 2}}", "--tensor 2 --pipeline 2"),
    ):
        cut = plan(folder, f"steps.{step}.runtime={{ranks_per_node: 4, parallel: {layout}}}").step(step)
        assert " ".join(cut.runtime.parallel.options) == options
        assert cut.key == alone.key


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (
            "{parallel: {tensor: 2}}",
            "runtime.parallel.tensor: 1 rank does not divide by 2 (nearest: 1, or start 2 ranks)",
        ),
        (
            "{ranks_per_node: 4, parallel: {tensor: 3}}",
            "runtime.parallel.tensor: 4 ranks do not divide by 3 (nearest: 2 or 4, or start 6 ranks)",
        ),
        (
            "{gpus_per_node: 8, parallel: {tensor: 8}}",
            "runtime.parallel.tensor: the model's vocabulary of 300 does not divide over 8 ranks (nearest on these "
            "ranks: 4)",
        ),
        ("{parallel: {tensor: 0}}", "runtime.parallel.tensor: input should be greater than or equal to 1"),
        (
            "{parallel: {pipeline: 2}}",
            "runtime.parallel.pipeline: 1 rank does not divide by 2 (nearest: 1, or start 2 ranks)",
        ),
        (
            "{ranks_per_node: 4, parallel: {tensor: 2, pipeline: 4}}",
            "runtime.parallel.tensor: 4 ranks do not divide into pipeline 4 x tensor 2 (nearest: tensor 1, or "
            "pipeline 2, or start 8 ranks)",
        ),
        (
            "{ranks_per_node: 8, parallel: {tensor: 2, pipeline: 4}}",
            "runtime.parallel.pipeline: 2 layers are too few for 4 stages (nearest: 2)",
        ),
        ("{parallel: {pipeline: {size: 2, mode: ZBV}}}", "runtime.parallel.pipeline: input should be a valid integer"),
        ("{parallel: {weight: 2}}", "runtime.parallel.weight: unknown key"),
    ],
)
def test_one_that_does_not_fit_is_refused_before_any_work(folder: Path, runtime: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(folder, f"steps.samples.runtime={runtime}")
    assert message in str(caught.value)

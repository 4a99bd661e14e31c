"""`eval.tasks` in a pipeline: its key follows the task files' content, its artifact holds them and the scores."""

from __future__ import annotations

import json
import shutil
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import tasks.convert
import tasks.eval_tasks
from evo_core.data.tokenize.tokenizers import train_sentencepiece
from evo_core.errors import ConfigError
from evo_core.weights import write_weights
from flows.pipeline.engine import run_plan
from flows.pipeline.plan import Plan, make_plan
from flows.pipeline.schema import load_pipeline
from flows.show import results
from tasks.store import open_store
from tests.flows.pipeline.conftest import Recorder
from tests.generate.conftest import SENTENCES
from tests.weights.models import model, weights

pytest.importorskip("lm_eval", reason='needs lm-eval (pip install "evo-lm[eval]")')

SHIPPED = Path(__file__).parents[1] / "evaluate/tasks"
TEXT = """\
pipeline: questions
vars: {tasks: tasks}
steps:
  model: {uses: model.import, params: {source: theirs}}
  asked:
    uses: eval.tasks
    needs: {model: model}
    params: {tasks: "${vars.tasks}"}
"""


def _in_this_process(ctx: Any, module: str, *args: str) -> None:
    """The launched command without its process, whose imports would take most of the test."""
    import_module(f"{module}.command").main(list(args))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(tasks.convert, "launch", _in_this_process)
    monkeypatch.setattr(tasks.eval_tasks, "launch", _in_this_process)
    tokenizer = train_sentencepiece(SENTENCES * 5, tmp_path / "letters.model", vocab_size=300)
    write_weights(weights(model("QWEN3", vocab_size=300), tokenizer), tmp_path / "theirs", "hf")
    (tmp_path / "tasks").mkdir()
    for file in ("last_word.yaml", "last_word.jsonl", "capitals_en.yaml", "capitals_en.jsonl"):
        shutil.copy(SHIPPED / file, tmp_path / "tasks")
    (tmp_path / "questions.yaml").write_text(TEXT)
    return tmp_path


def plan(folder: Path, *overrides: str) -> Plan:
    return make_plan(load_pipeline(folder / "questions.yaml", overrides), open_store(folder / "store"))


def test_scores_are_an_artifact(folder: Path) -> None:
    planned, store = plan(folder, "vars.tasks=tasks/last_word.yaml"), open_store(folder / "store")
    run_plan(planned, store, Recorder(), threading.Event())
    found = store.artifact("asked", planned.step("asked").key)
    scores = json.loads((found.path / "scores.json").read_text())
    assert list(scores["tasks"]) == ["last_word"]
    assert {row["metric"] for row in results.task_rows(found)} == {"acc", "perplexity"}
    statistics = found.manifest["statistics"]
    assert statistics["last_word acc"] == scores["tasks"]["last_word"]["metrics"]["acc"]["value"]
    assert (statistics["tasks"], statistics["documents"]) == (1, 5)
    assert (found.path / "tasks/last_word.jsonl").read_bytes() == (SHIPPED / "last_word.jsonl").read_bytes()


def test_the_key_follows_the_content(folder: Path) -> None:
    key = plan(folder).step("asked").key
    (folder / "tasks").rename(folder / "questions")
    moved = "vars.tasks=questions"
    assert plan(folder, moved).step("asked").key == key
    assert plan(folder, "vars.tasks=questions/last_word.yaml").step("asked").key != key
    data = folder / "questions/last_word.jsonl"
    data.write_text(data.read_text() + '{"text": "one more"}\n')
    assert plan(folder, moved).step("asked").key != key


def test_files_that_change_before_the_step_runs(folder: Path) -> None:
    planned = plan(folder)
    (folder / "tasks/last_word.jsonl").write_text('{"text": "another one"}\n')
    with pytest.raises(Exception, match="task files changed"):
        run_plan(planned, open_store(folder / "store"), Recorder(), threading.Event())


def test_a_folder_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no task file or folder .*gone"):
        plan(folder, "vars.tasks=gone")

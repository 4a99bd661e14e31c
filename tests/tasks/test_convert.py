"""`model.import` and `model.export` in a pipeline: keys, artifacts, and what is refused when planned."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from evo_core.checkpoint import load_model
from evo_core.data.tokenize.tokenizers import train_sentencepiece
from evo_core.errors import ConfigError
from evo_core.weights import write_weights
from flows.pipeline.engine import run_plan
from flows.pipeline.plan import Plan, make_plan
from flows.pipeline.schema import load_pipeline
from tasks.store import open_store
from tests.flows.pipeline.conftest import Recorder
from tests.generate.conftest import SENTENCES
from tests.weights.models import model, weights

TEXT = """\
pipeline: there-and-back
vars: {from: theirs, dtype: null}
steps:
  model:
    uses: model.import
    params: {source: "${vars.from}", dtype: "${vars.dtype}"}
  hf:
    uses: model.export
    needs: {model: model}
    params: {max_shard: 20KB}
publish: {foreign: model}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tokenizer = train_sentencepiece(SENTENCES * 5, tmp_path / "letters.model", vocab_size=300)
    write_weights(weights(model("QWEN3", vocab_size=300), tokenizer), tmp_path / "theirs", "hf")
    (tmp_path / "convert.yaml").write_text(TEXT)
    return tmp_path


def plan(folder: Path, *overrides: str) -> Plan:
    return make_plan(load_pipeline(folder / "convert.yaml", overrides), open_store(folder / "store"))


def test_there_and_back(folder: Path) -> None:
    planned = plan(folder)
    run_plan(planned, store := open_store(folder / "store"), Recorder(), threading.Event())
    assert [step.action for step in plan(folder).steps] == ["reuse", "reuse"]
    imported, exported = (store.artifact(step.name, step.key).path for step in planned.steps)
    assert (imported / "config.yaml").is_file()
    assert len(list((exported / "hf").glob("*.safetensors"))) > 2
    original, tokenizer = load_model(folder / "theirs")
    for place in (imported / "model", exported / "hf"):
        found, its_tokenizer = load_model(place)
        assert all((a == b).all() for a, b in zip(found.parameters(), original.parameters(), strict=True))
        assert its_tokenizer is not None
        assert its_tokenizer.encode("the cat 12") == tokenizer.encode("the cat 12")  # type: ignore[union-attr]


def test_the_key_follows_what_is_there_and_not_where(folder: Path) -> None:
    key = plan(folder).step("model").key
    shutil.copytree(folder / "theirs", folder / "elsewhere")
    assert plan(folder, "vars.from=elsewhere").step("model").key == key
    assert plan(folder, "vars.dtype=bfloat16").step("model").key != key
    config = folder / "elsewhere" / "config.json"
    config.write_text(config.read_text().replace("1000000.0", "10000.0"))
    assert plan(folder, "vars.from=elsewhere").step("model").key != key


def test_mistakes_are_found_when_planned(folder: Path) -> None:
    (folder / "empty").mkdir()
    for place, problem in (("nowhere", "there is no folder"), ("empty", "there are no weights in")):
        with pytest.raises(ConfigError, match=rf"steps\.model\.params\.source: {problem}"):
            plan(folder, f"vars.from={place}")
    with pytest.raises(ConfigError, match=r"steps\.model\.params\.dtype"):
        plan(folder, "vars.dtype=int8")

"""The shipped pipeline that trains on from published weights, in small; and what it refuses before any work."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from evo_core.checkpoint import load_model
from evo_core.errors import ConfigError
from evo_core.storage.files import link_tree, write_file
from flows.pipeline.engine import run_plan
from flows.pipeline.failures import reason
from flows.pipeline.plan import Plan, make_plan
from flows.pipeline.schema import load_pipeline
from tasks.store import open_store
from tests.flows.pipeline.conftest import Recorder
from tests.s3_server import S3Server
from tests.weights.published import FORMS, PIECES, ROWS, SENTENCES, letters, put

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "configs" / "pipelines" / "continue-pretrain.yaml"
SMALL: dict[str, dict[str, Any]] = {
    "data": {"seq_len": 32, "micro_bsz": 1, "global_batch_tokens": 64, "total_steps": 3, "valid_every": 0},
    "model": {"dtype": "torch.float32", "checkpoint": 0},
    "parallel": {"zero1": {"size": -1}},
    "ckpt": {"checkpoint_every": 3},
}


class Bench:
    """A corpus, weights in one of their forms, and the shipped pipeline on both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tokenizer = folder, letters(folder)
        self.trace, self.store = folder / "trace", open_store(folder / "store")
        for name in ("en", "cn"):
            (folder / "corpus" / name).mkdir(parents=True)
            lines = [json.dumps({"text": f"{text} {n}"}) for n, text in enumerate(SENTENCES * 6)]
            (folder / "corpus" / name / "a.jsonl").write_text("\n".join(lines))

    def weights(self, form: str) -> Path:
        FORMS[form](self.folder / form, self.tokenizer, self.trace)
        return self.folder / form

    def plan(self, weights: Path | str, *overrides: str, targets: Sequence[str] = ()) -> Plan:
        small = [f"steps.model.params.{block}={json.dumps(settings)}" for block, settings in SMALL.items()]
        steps = yaml.safe_load(PIPELINE.read_text())["steps"]
        local = [f"steps.{name}.runtime={{cluster: local}}" for name, step in steps.items() if "runtime" in step]
        over = [f"vars.weights={weights}", f"vars.corpus={self.folder / 'corpus'}", "steps.raw.params.settle=0"]
        over += [f"steps.{name}.runtime={{workers: 1}}" for name in ("tokens", "shards")]
        over += ["steps.shards.params.valid_fraction=0.2", *small, *local, *overrides]
        return make_plan(load_pipeline(PIPELINE, over), self.store, targets=targets)

    def run(self, weights: Path | str, *overrides: str, targets: Sequence[str] = ()) -> Recorder:
        recorder, plan = Recorder(), self.plan(weights, *overrides, targets=targets)
        run_plan(plan, self.store, recorder, threading.Event())
        return recorder

    def artifact(self, plan: Plan, step: str) -> Path:
        return self.store.artifact(plan.step(step).kind.name, plan.step(step).key).path


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "cache"))
    return Bench(tmp_path)


def test_from_internlm_to_a_trained_model(bench: Bench) -> None:
    """Its shape, its tokenizer, and what is stated otherwise is told."""
    weights = bench.weights("internlm-7b")
    recorder = bench.run(weights, "steps.model.params.model.rope_base=20000", targets=["model"])
    said = [line for kind, line in recorder.events if kind == "says"]
    assert "model.rope_base is 10000.0 with these weights and 20000.0 in this run" in said
    plan = bench.plan(weights, "steps.model.params.model.rope_base=20000", targets=["model"])
    assert {step.action for step in plan.steps} == {"reuse"}
    trained = yaml.safe_load((bench.artifact(plan, "model") / "model" / "config.yaml").read_text())
    assert trained["model_type"] == "INTERNLM"
    assert (trained["model"]["vocab_size"], trained["model"]["no_bias"]) == (ROWS, False)
    log = (bench.artifact(plan, "model") / "log.txt").read_text()
    assert "the schedule starts anew, over 3 steps" in log
    assert not bench.trace.exists()


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if form != "internevo"])
def test_the_whole_pipeline(bench: Bench, form: str) -> None:
    weights = bench.weights(form)
    bench.run(weights)
    plan = bench.plan(weights)
    assert {step.action for step in plan.steps} == {"reuse"}
    before, after = (
        json.loads((bench.artifact(plan, step) / "scores.json").read_text()) for step in ("before", "scores")
    )
    assert after["model"]["en"]["loss"] < before["model"]["en"]["loss"]
    assert (bench.artifact(plan, "samples") / "samples.jsonl").stat().st_size
    assert not bench.trace.exists()


@pytest.mark.slow
def test_internevos_folder_with_the_tokenizer_that_it_lacks(bench: Bench) -> None:
    weights = bench.weights("internevo")
    with pytest.raises(ConfigError, match=r"steps\.tokens\.needs\.tokenizer: there is no tokenizer with this model"):
        bench.plan(weights)
    bench.run(weights, f"steps.weights.params.tokenizer={bench.tokenizer}", targets=["model"])


def test_the_tokenizer_above_metas_folder_is_in_the_key(bench: Bench) -> None:
    weights = bench.weights("meta-llama")
    planned = bench.plan(weights).step("weights")
    assert planned.facts["tokenizer"] == str(weights.parent)
    (bench.folder / "other").mkdir()
    other = letters(bench.folder / "other", ["quick brown foxes jump over lazy dogs", "sphinx of black quartz"])
    (weights.parent / "tokenizer.model").write_bytes(other.read_bytes())
    assert bench.plan(weights).step("weights").key != planned.key


@pytest.mark.s3
def test_the_tokenizer_above_metas_folder_comes_with_it_from_a_store(bench: Bench, s3: S3Server) -> None:
    uri = put(bench.weights("meta-llama"), f"s3://{s3.new_bucket()}/models/meta-llama")
    _, tokenizer = load_model(uri)
    assert tokenizer is not None and tokenizer.vocab_size == PIECES
    key = bench.plan(uri).step("weights").key
    write_file(f"{uri.rpartition('/')[0]}/tokenizer.model", b"another")
    assert bench.plan(uri).step("weights").key != key


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.parametrize("form", ["internlm-7b", "meta-llama"])
def test_from_a_store(bench: Bench, form: str, s3: S3Server) -> None:
    uri = put(bench.weights(form), f"s3://{s3.new_bucket()}/models/{form}")
    bench.run(uri, targets=["model"])
    assert bench.plan(uri, targets=["model"]).step("model").action == "reuse"
    assert not bench.trace.exists()


@pytest.mark.s3
def test_what_lies_in_a_store_is_checked_without_the_weights(bench: Bench, s3: S3Server) -> None:
    weights, uri = bench.weights("internlm-7b"), f"s3://{s3.new_bucket()}/models/internlm-7b"
    link_tree(weights, uri)
    facts = bench.plan(uri).step("weights").facts
    assert facts["network"]["model"] == bench.plan(weights).step("weights").facts["network"]["model"]
    assert not list((bench.folder / "cache").rglob("*.bin"))
    with pytest.raises(ConfigError, match=r"steps\.weights\.params\.source: s3://\S+: .*there is nothing"):
        bench.plan(uri + "-not")


def test_the_shape_is_not_in_the_key_twice(bench: Bench) -> None:
    """What is known of the weights when planning changes no key: their own is in it."""
    weights = bench.weights("internlm-7b")
    known = bench.plan(weights).step("model")
    assert known.facts["network"]["model"]["num_layers"] == 2
    assert known.payload["params"]["job"]["model"] == {"dtype": "torch.float32"}
    assert "model_type" not in known.payload["params"]["job"]


def test_facts_are_remembered_by_content(bench: Bench) -> None:
    weights = bench.weights("internlm2-7b")
    facts = bench.plan(weights).step("weights").facts
    remembered = json.loads((bench.store.inventory.parent / "imported.json").read_text())
    assert list(remembered.values()) == [facts]
    (bench.store.inventory.parent / "imported.json").write_text("{")
    assert bench.plan(weights).step("weights").facts == facts
    weights.rename(bench.folder / "elsewhere")
    moved = bench.plan(bench.folder / "elsewhere").step("weights").facts
    assert moved == facts | {"tokenizer": str(bench.folder / "elsewhere")}


def refusal(bench: Bench, weights: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        bench.plan(weights, *overrides)
    return str(caught.value)


def test_data_of_another_tokenizer(bench: Bench) -> None:
    weights = bench.weights("internlm-7b")
    (bench.folder / "other").mkdir()
    other = letters(bench.folder / "other", ["quick brown foxes jump over lazy dogs", "sphinx of black quartz"])
    said = refusal(bench, weights, "steps.tokens.needs={raw: raw}", f"steps.tokens.params.tokenizer={other}")
    assert "steps.model.needs.data: the data were tokenized with another tokenizer than that of the weights" in said
    same = f"steps.tokens.params.tokenizer={bench.tokenizer}"
    assert bench.plan(weights, "steps.tokens.needs={raw: raw}", same).step("tokens").facts["vocab_size"] == PIECES


def test_a_tokenizer_with_more_ids_than_the_weights_have_rows(bench: Bench) -> None:
    weights = bench.weights("internlm-7b")
    added = {f"<extra_{n}>": PIECES + n for n in range(ROWS - PIECES + 1)}
    (weights / "added_tokens.json").write_text(json.dumps(added))
    said = refusal(bench, weights)
    assert f"the tokenizer has {ROWS + 1} pieces, which do not fit the model's vocabulary of {ROWS}" in said
    del added[f"<extra_{ROWS - PIECES}>"]  # as many as there are rows: families pad
    (weights / "added_tokens.json").write_text(json.dumps(added))
    assert bench.plan(weights).step("tokens").facts["vocab_size"] == ROWS


def test_another_shape_than_the_weights(bench: Bench) -> None:
    weights = bench.weights("internlm-7b")
    shape = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 320, "dtype": "torch.float32"}
    said = refusal(bench, weights, f"steps.model.params.model={json.dumps(shape)}")
    assert "steps.model.params.model.vocab_size: is 320 here, and 304 in the weights to start from" in said
    assert "leave it out, and the sizes of the model block with it" in said
    said = refusal(bench, weights, "steps.model.params.model_type=LLAMA2")
    assert "steps.model.params.model_type: is LLAMA2 here, and INTERNLM in the weights" in said


@pytest.mark.parametrize(
    ("stated", "here", "there"),
    [
        ({"tie_word_embeddings": True}, "tie_word_embeddings: is True", "False"),
        ({"no_bias": True}, "no_bias: is True", "False"),
        ({"qk_norm": True}, "qk_norm: is True", "False"),
        ({"norm_type": "layernorm"}, "norm_type: is layernorm", "rmsnorm"),
        ({"use_swiglu": False}, "use_swiglu: is False", "True"),
        ({"mlp_ratio": 4}, "mlp_ratio: makes an MLP 128 wide", "64"),
    ],
)
def test_settings_by_which_the_model_has_other_tensors(bench: Bench, stated: Any, here: str, there: str) -> None:
    over = f"steps.model.params.model={json.dumps(SMALL['model'] | stated)}"
    said = refusal(bench, bench.weights("internlm-7b"), over)
    assert f"steps.model.params.model.{here} here, and {there} in the weights" in said


def test_one_width_in_other_words_is_no_difference(bench: Bench) -> None:
    over = f"steps.model.params.model={json.dumps(SMALL['model'] | {'mlp_ratio': 1.9, 'multiple_of': 64})}"
    assert bench.plan(bench.weights("internlm-7b"), over).step("model").facts["vocab_size"] == ROWS


def test_a_layout_that_the_weights_do_not_divide_by(bench: Bench) -> None:
    said = refusal(
        bench,
        bench.weights("internlm-7b"),
        "steps.model.params.parallel={tensor: 3}",
        "steps.model.runtime={cluster: local, ranks_per_node: 3}",
    )
    assert "3" in said and "steps.model.params." in said


def test_without_weights_the_shape_is_required(bench: Bench) -> None:
    said = refusal(bench, bench.weights("internlm-7b"), "steps.model.needs={data: shards}")
    assert "model.num_layers: is required" in said


def test_what_turns_out_when_the_weights_are_there(bench: Bench) -> None:
    """Facts that nobody knew when it was planned are looked at before training begins."""
    from evo_core.weights import open_weights, write_weights
    from tasks.start import found_facts

    model, data = bench.folder / "model", bench.folder / "data"
    write_weights(open_weights(bench.weights("internlm-7b")), model / "model", "evo")
    (data / "tokenizer").mkdir(parents=True)
    (data / "tokenizer" / "tokenizer.model").write_bytes(bench.tokenizer.read_bytes())
    facts = found_facts(data, model)
    plan = bench.plan(bench.folder / "internlm-7b").step("model")
    plan.kind.check(plan.params, plan.runtime, facts, "steps.model")
    assert facts["init"]["network"] == plan.facts["network"] | {
        "model": plan.facts["network"]["model"] | {"dtype": "torch.float32"}
    }
    (bench.folder / "other").mkdir()
    other = letters(bench.folder / "other", ["quick brown foxes jump over lazy dogs", "sphinx of black quartz"])
    (data / "tokenizer" / "tokenizer.model").write_bytes(other.read_bytes())
    with pytest.raises(ConfigError, match="with another tokenizer") as caught:
        plan.kind.check(plan.params, plan.runtime, found_facts(data, model), "steps.model")
    assert "steps.model.needs.data" in reason(caught.value)

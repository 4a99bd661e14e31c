"""What a training step makes of a training configuration when it is planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evo_core.data.loader import scale
from evo_core.errors import ConfigError
from flows.pipeline.plan import make_plan
from flows.pipeline.schema import load_pipeline
from tasks.store import open_store
from tasks.train import Params, Pretrain
from tests.tasks.corpus import TOKENIZER, LocalFiles


def params(tmp_path: Path, stated: Any, **over: Any) -> Params:
    config = tmp_path / "job.yaml"
    shape = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 64, "multiple_of": 16}
    config.write_text(json.dumps({"model": shape, "data": {"total_steps": 8}, "ckpt": stated}))
    return Params.model_validate({"config": str(config), **over}, context={"where": "steps.model.params"})


@pytest.mark.parametrize(
    "ckpt",
    [
        None,
        {},
        {"enable_save_ckpt": True},
        {"enable_save_ckpt": True, "save_ckpt_folder": ""},
        {"enable_save_ckpt": False},
        {"enable_save_ckpt": True, "save_ckpt_folder": "local:mine", "checkpoint_every": 5},
    ],
)
def test_where_a_step_saves_is_its_own_business_and_not_in_the_key(tmp_path: Path, ckpt: Any) -> None:
    kind, plain = Pretrain(), params(tmp_path, {})
    runtime = kind.runtime_type()
    expected = kind.identity(plain, runtime)  # type: ignore[arg-type]
    assert kind.identity(params(tmp_path, ckpt), runtime) == expected  # type: ignore[arg-type]


def test_a_block_over_it_is_still_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ckpt\.keep: must be at least 1"):
        params(tmp_path, {}, ckpt={"keep": 0})
    with pytest.raises(ConfigError, match="ckpt"):
        params(tmp_path, {}, ckpt=5)


# ---- the order of many documents


STEPS = """\
pipeline: many
steps:
  raw: {uses: source.files, params: {root: "ROOT"}}
  tokens: {uses: data.tokenize, needs: {raw: raw}, params: {tokenizer: "TOKENIZER"}}
  shards: {uses: data.shard, needs: {tokens: tokens}}
  model: {uses: train.pretrain, needs: {data: shards}, params: {config: job.yaml}}
"""


def keys(tmp_path: Path, *overrides: str) -> dict[str, str]:
    shape = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 1000, "multiple_of": 16}
    (tmp_path / "job.yaml").write_text(json.dumps({"model": shape, "data": {"total_steps": 8}}))
    file = tmp_path / "many.yaml"
    file.write_text(STEPS.replace("ROOT", str(tmp_path / "raw")).replace("TOKENIZER", str(TOKENIZER)))
    plan = make_plan(load_pipeline(file, list(overrides)), open_store(tmp_path / "store"))
    return {step.name: step.key for step in plan.steps}


def test_only_data_that_may_be_in_the_order_of_many_have_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LocalFiles(tmp_path / "raw").write({"en/a.txt": "one\ntwo\nthree\n", "cn/b.jsonl": '{"text": "four"}\n' * 3})
    plain = keys(tmp_path)
    monkeypatch.setattr(scale, "SCALE", scale.Scale(documents=6))
    assert keys(tmp_path) == plain, "six lines are at most six documents"
    monkeypatch.setattr(scale, "SCALE", scale.Scale(documents=5))
    moved = keys(tmp_path)
    assert {name for name in plain if moved[name] != plain[name]} == {"model"}
    monkeypatch.setattr(scale, "LARGE_ORDER_VERSION", 4)
    assert keys(tmp_path)["model"] not in (plain["model"], moved["model"])
    internevo = "steps.model.params.data={packing: internevo, train_folder: any}"
    large = keys(tmp_path, internevo)
    few = "steps.shards.params={types: [cn], others: drop}"
    assert keys(tmp_path, few)["model"] != keys(tmp_path)["model"]
    monkeypatch.setattr(scale, "SCALE", scale.Scale(documents=3))
    cn = keys(tmp_path, few)
    monkeypatch.undo()
    assert keys(tmp_path, internevo) == large, "InternEvo's order is the same at any size"
    assert keys(tmp_path, few) == cn, "only the types that are taken count"


def test_the_key_of_data_of_which_nobody_knows_how_many_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever goes on in them in another order is stopped by the digest of the data."""
    LocalFiles(tmp_path / "raw").write({"en/a.txt": "one\ntwo\n", "en/b.json": '[{"text": "three"}]'})
    plain = keys(tmp_path)
    monkeypatch.setattr(scale, "SCALE", scale.Scale(documents=1))
    assert keys(tmp_path) == plain

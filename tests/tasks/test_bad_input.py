"""What a user can get wrong about the raw data, the tokenizer and the split: found when the run is planned."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models

from evo_core.errors import ConfigError, UserError
from flows.pipeline.plan import Plan, make_plan
from flows.pipeline.schema import load_pipeline
from tasks.store import open_store

ROOT = Path(__file__).parents[2]
TEXT = """\
pipeline: small
steps:
  raw:
    uses: source.files
    params: {root: raw}
  tokenizer:
    uses: tokenizer.train
    needs: {raw: raw}
    params: {vocab_size: 400}
  tokens:
    uses: data.tokenize
    needs: {raw: raw, tokenizer: tokenizer}
  shards:
    uses: data.shard
    needs: {tokens: tokens}
    params: {types: [cn, en], valid_fraction: 0.2}
  model:
    uses: train.pretrain
    needs: {data: shards}
    params:
      config: CONFIG
      model: {vocab_size: 400, num_layers: 4}
      data: {micro_bsz: 4, global_batch_tokens: 4096}
      optimizer: {name: adamw}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for type_ in ("cn", "en"):
        (tmp_path / "raw" / type_).mkdir(parents=True)
        (tmp_path / "raw" / type_ / "a.txt").write_text("one\ntwo\nthree\n")
    letters = Library(models.BPE({chr(i): i - 32 for i in range(32, 127)}, []))
    letters.add_special_tokens(["<|im_end|>"])
    letters.save(str(tmp_path / "markless.json"))
    config = ROOT / "configs" / "train" / "demo.yaml"
    (tmp_path / "small.yaml").write_text(TEXT.replace("CONFIG", str(config)))
    return tmp_path


def plan(folder: Path, *overrides: str) -> Plan:
    return make_plan(load_pipeline(folder / "small.yaml", overrides), open_store(folder / "store"))


def test_it_plans(folder: Path) -> None:
    assert [step.action for step in plan(folder).steps] == ["run"] * 5


CASES = {
    "missing raw folder": (["steps.raw.params.root=nowhere"], "steps.raw.params.root: the raw folder"),
    "empty corpus": (["steps.raw.params.include=['*.md']"], "steps.raw.params.root: the corpus is empty"),
    "vocabulary": (
        ["steps.model.params.model.vocab_size=399"],
        "steps.model.params.model.vocab_size: the tokenizer has 400 pieces, which do not fit",
    ),
    "unknown type": (["steps.shards.params.types=[cn, en, code]"], "there is no raw text of type 'code'"),
    "type left out": (["steps.shards.params.types=[cn]"], "raw text of type en would be left out"),
    "misspelt training key": (
        ["steps.model.params.adma={lr: 1}"],
        'steps.model.params.adma: unknown key; did you mean "adam"',
    ),
    "misspelt key in a block": (
        ["steps.model.params.adam={lrr: 1}"],
        'steps.model.params.adam.lrr: unknown key; did you mean "lr"',
    ),
    "impossible layout": (
        ["steps.model.params.parallel={zero1: {size: 3}}", "steps.model.runtime={ranks_per_node: 4}"],
        "steps.model.params.parallel.zero1",
    ),
    "tensor ranks that the nodes do not have": (
        ["steps.model.params.parallel={tensor: 4}", "steps.model.runtime={nodes: 1, ranks_per_node: 2}"],
        "steps.model.params.parallel.tensor.size: 2 ranks do not divide into pipeline.size 1 x tensor.size 4 (nearest: "
        "tensor.size 2, or 4 ranks)",
    ),
    "a model that tensor ranks cannot share": (
        ["steps.model.params.parallel={tensor: 7}"],
        "steps.model.params.parallel.tensor.size: 7 ranks cannot share vocab_size 400, num_attention_heads",
    ),
    "more stages than layers": (
        ["steps.model.params.parallel={pipeline: 8}", "steps.model.runtime={ranks_per_node: 8}"],
        "steps.model.params.parallel.pipeline.size: 4 layers are too few for 8 stages (nearest: 4)",
    ),
    "stages that the nodes do not have": (
        ["steps.model.params.parallel={pipeline: 4}", "steps.model.runtime={ranks_per_node: 6}"],
        "steps.model.params.parallel.pipeline.size: 6 ranks do not divide into pipeline.size 4 x tensor.size 1 "
        "(nearest: pipeline.size 3, or 4 or 8 ranks)",
    ),
    "a batch that the chunks of a pipeline cannot take in groups": (
        [
            "steps.model.params.parallel={pipeline: 2}",
            "steps.model.params.model.num_chunks=2",
            "steps.model.params.data.global_batch_tokens=6144",
            "steps.model.runtime={ranks_per_node: 4}",
        ],
        "steps.model.params.data.global_batch_tokens: 6144 tokens are a micro_num of 3 at data-parallel size 2, which "
        "with num_chunks 2 must be a multiple of pipeline.size 2 (nearest: 4096 or 8192 tokens, or num_chunks 1)",
    ),
    "tokenizer that is not there": (
        ["steps.tokens.params.tokenizer=nowhere.model", "steps.tokens.needs={raw: raw}"],
        "steps.tokens.params.tokenizer: the tokenizer",
    ),
    "tokenizer without a begin token": (
        ["steps.tokens.params.tokenizer=markless.json", "steps.tokens.needs={raw: raw}"],
        "steps.tokens.params.bos: this tokenizer has no bos token (set bos: false)",
    ),
    "the same for instructions": (
        ["steps.tokens={uses: data.tokenize_sft, params: {tokenizer: markless.json, eos: false}, needs: {raw: raw}}"],
        "steps.tokens.params.bos: this tokenizer has no bos token (set bos: false)",
    ),
    "no tokenizer": (["steps.tokens.needs={raw: raw}"], "steps.tokens.params.tokenizer: no tokenizer is named"),
    "two tokenizers": (["steps.tokens.params.tokenizer=nowhere.model"], "both a tokenizer file and an input"),
    "config that is not there": (["steps.model.params.config=nowhere.yaml"], "nowhere.yaml: "),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_found_before_any_work(folder: Path, case: str) -> None:
    overrides, message = CASES[case]
    with pytest.raises(ConfigError) as caught:
        plan(folder, *overrides)
    assert message in str(caught.value)
    assert not (folder / "store" / "artifacts").exists()


def test_too_few_documents_for_a_split(folder: Path) -> None:
    (folder / "raw" / "en" / "a.txt").write_text("only one\n")
    with pytest.raises(
        UserError, match=r"small.yaml:\d+: steps.shards.params.valid_fraction: too few documents .* 'en'"
    ):
        plan(folder)


def test_an_unchanged_file_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.store.digests as digests

    plan(folder)
    monkeypatch.setattr(digests, "digest_file", lambda path: pytest.fail(f"read {path} again"))
    plan(folder)


def test_a_file_still_being_written_is_left_out(folder: Path) -> None:
    with pytest.raises(ConfigError, match="the corpus is empty"):
        plan(folder, "steps.raw.params.settle=1h")

"""The identity: changed by every setting that changes the weights, and by nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evo_core.config import TrainConfig, load_config
from evo_core.config.fields import NEVER, Block, Leaf, leaves, value_at
from evo_core.config.identity import put
from tests.config.jobs import JOBS, at, job

LEAVES = list(leaves(TrainConfig))
LOAD_INFO = {"path": "local:x", "content": ["model"]}
OPTIONAL = ("ckpt.load_ckpt_info.", "model.rope_scaling.", "monitor.profile.")  # None where they are left out
EXECUTION = [leaf for leaf in LEAVES if leaf.mark == "execution" and not leaf.key.startswith(OPTIONAL)]
IDENTITY = [leaf for leaf in LEAVES if leaf.mark == "identity" and not leaf.key.startswith(OPTIONAL)]


def other(value: Any) -> Any:
    """Some value that differs."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value * 2 + 3
        case str():
            return value + "x"
        case None:
            return 7
        case dict():
            return {"x": 1}
        case _:
            return [value]


def changed(config: Any, leaf: Leaf, value: Any) -> Any:
    """The configuration with one value replaced, legal or not: what a later version may allow."""

    def replace(block: Block, names: list[str]) -> Block:
        name, *rest = names
        return block.model_copy(update={name: replace(getattr(block, name), rest) if rest else value})

    return replace(config, leaf.key.split("."))


@pytest.mark.parametrize("leaf", EXECUTION, ids=lambda leaf: leaf.key)
def test_an_execution_setting_leaves_the_identity_alone(leaf: Leaf) -> None:
    if leaf.key.startswith("parallel.") and leaf.key.endswith("size"):
        config = job({"data": {"global_batch_tokens": 8192}})
    else:
        config = job()
    assert changed(config, leaf, other(value_at(config, leaf.key))).identity(8) == config.identity(8)


@pytest.mark.parametrize("leaf", IDENTITY, ids=lambda leaf: leaf.key)
def test_an_identity_setting_changes_the_identity(leaf: Leaf) -> None:
    config = job()
    assert changed(config, leaf, other(value_at(config, leaf.key))).identity(8) != config.identity(8)


_execution = st.dictionaries(st.sampled_from([leaf.key for leaf in EXECUTION]), st.integers(1, 9) | st.booleans())


@settings(max_examples=50)
@given(_execution)
def test_no_set_of_execution_settings_changes_the_identity(values: dict[str, Any]) -> None:
    by_key = {leaf.key: leaf for leaf in EXECUTION}
    plain = config = job({"data": {"global_batch_tokens": 8192}})
    for key, value in values.items():
        config = changed(config, by_key[key], value)
    assert config.identity(8) == plain.identity(8)


def test_a_global_batch_means_the_same_on_any_number_of_ranks() -> None:
    config = job({"data": {"global_batch_tokens": 8192}})
    assert config.identity(1) == config.identity(4)
    assert config.identity(1)["data"]["global_batch_tokens"] == 8192
    assert not {"micro_num", "dp"} & config.identity(1)["data"].keys()


def test_micro_num_means_another_batch_on_other_ranks() -> None:
    config = job({"data": {"micro_num": 4}})
    assert config.identity(1) != config.identity(4)
    assert (config.identity(4)["data"]["micro_num"], config.identity(4)["data"]["dp"]) == (4, 4)


def test_settings_that_came_later_are_left_out_at_their_introduced_default() -> None:
    identity, later = job().identity(1), [leaf for leaf in IDENTITY if leaf.introduced is not NEVER]
    assert {"data.packing", "data.mask_token_zero", "model.num_experts"} <= {leaf.key for leaf in later}
    for leaf in later:
        assert not _has(identity, leaf.key), leaf.key
    assert job({"data": {"mask_token_zero": True}}).identity(1)["data"]["mask_token_zero"] is True
    assert {leaf.key for leaf in IDENTITY if not _has(identity, leaf.key)} == {leaf.key for leaf in later}


def test_the_trained_length_follows_seq_len_and_counts_only_where_it_is_stated() -> None:
    plain, stated = (
        job({"data": {"seq_len": 256}}),
        job({"data": {"seq_len": 256}, "model": {"max_position_embeddings": 512}}),
    )
    assert plain.model.max_position_embeddings == 256
    assert not _has(plain.identity(1), "model.max_position_embeddings")
    assert "max_position_embeddings" not in plain.to_yaml()
    assert TrainConfig.model_validate(plain.to_plain()).model.max_position_embeddings == 256
    assert TrainConfig.model_validate(dict(plain)).model.max_position_embeddings == 256
    assert stated.model.max_position_embeddings == 512
    assert stated.identity(1)["model"]["max_position_embeddings"] == 512
    assert TrainConfig.model_validate(stated.to_plain()).model.max_position_embeddings == 512
    # At the default that it had before, a stated one adds nothing to the identity, as ever; it holds all the same.
    before = job({"data": {"seq_len": 256}, "model": {"max_position_embeddings": 2048}})
    assert before.identity(1) == plain.identity(1)
    assert TrainConfig.model_validate(before.to_plain()).model.max_position_embeddings == 2048


def test_what_is_loaded_counts_only_where_it_is_read() -> None:
    resuming, starting = ({"load_ckpt_info": LOAD_INFO, "auto_resume": resume} for resume in (True, False))
    assert job({"ckpt": resuming}).identity(1) == job().identity(1)
    assert job({"ckpt": starting}).identity(1)["ckpt"]["load_ckpt_info"]["path"] == "local:x"


def test_a_rope_scaling_counts_with_all_its_numbers() -> None:
    scaled = job({"model": {"rope_scaling": {}}}).identity(1)["model"]
    assert "rope_scaling" not in job().identity(1)["model"]
    assert scaled["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_the_way_a_value_is_written_does_not_matter() -> None:
    one = job(
        {"adam": {"lr": "1/1000"}, "data": {"seq_len": "2**8", "rampup_batch_size": None}, "parallel": {"zero1": 1}}
    )
    two = job({"adam": {"lr": 0.001}, "data": {"seq_len": 256.0, "rampup_batch_size": ""}})
    assert one.identity(1) == two.identity(1)
    assert json.dumps(one.identity(1)) == json.dumps(two.identity(1))


def test_the_identity_is_plain_data() -> None:
    for path in JOBS:
        identity = load_config(path).identity(8)
        assert json.loads(json.dumps(identity, allow_nan=False)) == identity


def test_places_are_not_in_the_identity() -> None:
    places = [
        at("data.train_folder", "/a"),
        at("ckpt.save_ckpt_folder", "/b"),
        at("data.tokenizer_path", "/c"),
        at("tensorboard_folder", "/d"),
        at("job_name", "x"),
    ]
    assert all(job(place).identity(1) == job().identity(1) for place in places)


def _has(nested: dict[str, Any], key: str) -> bool:
    here: Any = nested
    for name in key.split("."):
        if not isinstance(here, dict) or name not in here:
            return False
        here = here[name]
    return True


def test_put_makes_the_maps_on_the_way() -> None:
    data: dict[str, Any] = {"a": {"b": 1}}
    put(data, "a.c.d", 2)
    assert data == {"a": {"b": 1, "c": {"d": 2}}}


def test_the_order_of_what_has_no_decay_is_none_of_it() -> None:
    words = ["embedding", "norm", "bias"]
    one, other_order = (job(at("adam.no_decay", some)) for some in (words, words[::-1]))
    assert one.identity(1) == other_order.identity(1) != job().identity(1)
    assert TrainConfig.model_validate(one.to_plain()).adam.no_decay == ("norm", "bias", "embedding")

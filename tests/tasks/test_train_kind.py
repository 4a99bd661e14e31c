"""What a training step makes of a training configuration when it is planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evo_core.errors import ConfigError
from tasks.train import Params, Pretrain


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

"""A model type of a user's own: its block is checked against the keys it was registered with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from evo_core.config import ModelConfig, TrainConfig, load_config
from evo_core.errors import ConfigError
from evo_core.model import registry
from tests.config.jobs import job, refusal


class StateConfig(BaseModel):
    """The keys of a model that is no decoder."""

    hidden_size: int = Field(gt=0)
    vocab_size: int = 100
    states: int = 4


def build_state(model_cfg: Any, **given: Any) -> Any:
    raise AssertionError("no model is built to check a job")


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    registry.register_model_type("STATE", build_state, StateConfig)
    yield
    del registry._TYPES["STATE"]


def state(**model: Any) -> TrainConfig:
    return TrainConfig.model_validate({"model_type": "STATE", "model": {"hidden_size": 8} | model})


def test_its_keys_and_defaults_are_its_own() -> None:
    config: Any = state(states=2)
    assert (config.model.hidden_size, config.model.states, config.model.vocab_size) == (8, 2, 100)
    assert (config.model.model_type, config.model.use_fp32_norm, config.model.dtype) == (
        "STATE",
        False,
        "torch.bfloat16",
    )
    assert isinstance(config.model, StateConfig)


def test_its_keys_are_identity() -> None:
    assert state(states=2).identity(1) != state().identity(1)
    assert state(states=4).identity(1) == state().identity(1)
    assert state().identity(1)["model"] == {"hidden_size": 8, "vocab_size": 100, "states": 4, "dtype": "torch.bfloat16"}


def test_it_reads_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(state(states=2).to_yaml())
    assert load_config(path) == state(states=2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"stats": 2}, 'model.stats: unknown key; did you mean "states"?'),
        ({"num_layers": 2}, "model.num_layers: unknown key"),
        ({"hidden_size": 0}, "model.hidden_size: must be greater than 0, not 0"),
        ({"hidden_size": None}, "model.hidden_size: must be a whole number, not null"),
    ],
)
def test_its_mistakes_are_answered(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        state(**model)
    assert message in str(caught.value)


def test_a_config_may_register_its_model(tmp_path: Path) -> None:
    path = tmp_path / "job.py"
    path.write_text(
        "from pydantic import BaseModel\n"
        "from evo_core.model import register_model_type\n"
        "class Keys(BaseModel):\n"
        "    width: int\n"
        "    vocab_size: int = 7\n"
        "def build(model_cfg, *, device, dtype): ...\n"
        'register_model_type("WIDE", build, Keys, replace=True)\n'
        'model_type = "WIDE"\n'
        "model = dict(width=3)\n"
    )
    config: Any = load_config(path)
    assert config.model.width == 3
    del registry._TYPES["WIDE"]


def test_an_unknown_type_is_answered_with_the_known_ones() -> None:
    message = refusal({"model_type": "INTERNLM2"})
    assert message.startswith("model_type: unknown model type 'INTERNLM2'")
    assert "INTERNLM2_PUBLIC" in message


class Cuttable:
    """A builder that says how its model is cut."""

    Config = StateConfig

    def parallelize(self, tensor: Any) -> None:
        raise AssertionError("no model is cut to check a job")


def test_a_class_that_does_not_say_how_it_is_cut_is_not_shared_by_ranks() -> None:
    job = {"model_type": "STATE", "model": {"hidden_size": 8}}
    with pytest.raises(ConfigError) as caught:
        TrainConfig.model_validate(job | {"parallel": {"tensor": 2}})
    assert str(caught.value) == (
        "parallel.tensor.size: 2: the class of STATE does not say how it is cut "
        "(set it to 1, or give the class a method parallelize: docs/models.md)"
    )
    registry.register_model_type("STATE", Cuttable, replace=True)
    assert TrainConfig.model_validate(job | {"parallel": {"tensor": 2}}).dp(4) == 2
    with pytest.raises(ConfigError) as caught:
        TrainConfig.model_validate(job | {"parallel": {"tensor": {"size": 2, "mode": "fsp"}}})
    assert str(caught.value) == (
        'parallel.tensor.mode: "fsp": STATE is given the whole sequence on every rank (write mtp)'
    )


def test_a_model_type_of_ones_own_has_no_stages() -> None:
    job = {"model_type": "STATE", "model": {"hidden_size": 8}}
    with pytest.raises(ConfigError) as caught:
        TrainConfig.model_validate(job | {"parallel": {"pipeline": 2}})
    assert str(caught.value) == (
        "parallel.pipeline.size: 2: STATE is a model type of your own, which has no stages "
        "(set it to 1; ranks can share each of its layers: docs/models.md)"
    )
    said = TrainConfig.model_validate(job | {"parallel": {"pipeline": {"size": 1, "mode": "ZBV"}}})
    assert said.settings_without_effect("cuda") == ["parallel.pipeline.mode (pipeline.size is 1)"]


class LikeShipped:
    """A builder whose settings are those of the shipped families."""

    class Config(ModelConfig):
        """And one more."""

        states: int = 3


def test_nor_has_one_that_takes_the_settings_of_the_shipped_ones() -> None:
    registry.register_model_type("LIKE-SHIPPED", LikeShipped, replace=True)
    with pytest.raises(ConfigError, match=r"parallel.pipeline.size: 2: LIKE-SHIPPED is a model type of your own"):
        job({"model_type": "LIKE-SHIPPED", "parallel": {"pipeline": 2}})


@pytest.mark.parametrize(("tensor", "weight", "hint"), [(2, 1, "write mtp"), (1, 2, "write mtp with weight.size 1")])
def test_nor_blocks_whose_weights_could_be_gathered(tensor: int, weight: int, hint: str) -> None:
    parallel = {"tensor": {"size": tensor, "mode": "isp"}, "weight": weight}
    registry.register_model_type("STATE", Cuttable, replace=True)
    with pytest.raises(ConfigError) as caught:
        TrainConfig.model_validate({"model_type": "STATE", "model": {"hidden_size": 8}, "parallel": parallel})
    assert str(caught.value) == (
        'parallel.tensor.mode: "isp": STATE is a model type of your own, whose blocks are not known here '
        f"({hint}: docs/models.md)"
    )
    registry.register_model_type("LIKE-SHIPPED", LikeShipped, replace=True)
    with pytest.raises(ConfigError, match=r'parallel.tensor.mode: "isp": LIKE-SHIPPED is a model type of your own'):
        job({"model_type": "LIKE-SHIPPED", "parallel": parallel})

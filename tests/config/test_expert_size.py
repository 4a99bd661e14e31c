"""Experts over ranks: what must divide, and where a stated size means nothing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from evo_core.config import TrainConfig
from evo_core.errors import ConfigError
from evo_core.model import registry
from tests.config.jobs import at, job, refusal


def mixture(size: int, experts: int = 4, **parallel: Any) -> TrainConfig:
    model = {"model_type": "INTERNLM_MoE", "model": {"num_experts": experts}}
    return job({**model, "parallel": {"expert": {"size": size}, **parallel}, "data": {"micro_num": 8}})


@pytest.mark.parametrize(
    ("size", "experts", "ranks", "said"),
    [
        (3, 4, 12, "3 does not divide the 4 experts (model.num_experts) (nearest: 2 or 4; -1 takes all that divide)"),
        (4, 4, 6, "4 does not divide the 6 data-parallel ranks (nearest: 2; -1 takes all that divide)"),
        (8, 8, 4, "8 does not divide the 4 data-parallel ranks (nearest: 4; -1 takes all that divide)"),
        (2, 3, 3, "2 does not divide the 3 experts (model.num_experts) (nearest: 1 or 3; -1 takes all that divide)"),
    ],
)
def test_sizes_that_do_not_divide(size: int, experts: int, ranks: int, said: str) -> None:
    cfg = mixture(size, experts)
    for call in (cfg.check_world, cfg.degrees):
        with pytest.raises(ConfigError) as caught:
            call(ranks)
        assert str(caught.value) == f"parallel.expert.size: {said}"


@pytest.mark.parametrize(
    ("size", "experts", "ranks", "parallel", "found"),
    [
        (-1, 4, 8, {}, 4),
        (-1, 4, 6, {}, 2),  # the largest that divides both
        (-1, 4, 8, {"tensor": 2, "pipeline": 2}, 2),
        (-1, 4, 3, {}, 1),
        (1, 4, 8, {}, 1),
        (2, 4, 8, {"zero1": 2}, 2),
        (-1, 4, 8, {"tensor": {"size": 2, "mode": "isp"}, "weight": 2}, 1),
    ],
)
def test_who_has_the_experts(size: int, experts: int, ranks: int, parallel: dict[str, Any], found: int) -> None:
    assert mixture(size, experts, **parallel).degrees(ranks).expert == found


def test_isp_fetches_all_of_them() -> None:
    isp = {"tensor": {"size": 2, "mode": "isp"}, "expert": 2}
    changes = {"model_type": "INTERNLM_MoE", "model": {"num_experts": 4}, "parallel": isp}
    assert refusal(changes) == (
        "parallel.expert.size: 2: with tensor.mode isp every rank fetches all experts "
        "(leave it out, or write tensor.mode msp to send tokens to them)"
    )
    assert job(changes | {"parallel": isp | {"expert": 1}}).degrees(4).expert == 1


def test_without_experts_the_size_is_named_and_nothing_else() -> None:
    cfg = job(at("parallel.expert.size", 3))
    assert cfg.settings_without_effect("cpu") == ["parallel.expert.size (num_experts is 1)"]
    cfg.check_world(4)
    assert cfg.degrees(4).expert == 1
    assert mixture(2).settings_without_effect("cpu") == []


class Mixture(BaseModel):
    """The block of a user's model type, which has a word for experts too."""

    num_experts: int
    vocab_size: int = 64


def build_mixture(model_cfg: Any, **given: Any) -> Any:
    raise AssertionError("no model is built to check a job")


def test_a_model_type_of_ones_own_keeps_its_experts() -> None:
    registry.register_model_type("MIXTURE", build_mixture, Mixture)
    own = {"model_type": "MIXTURE", "model": {"num_experts": 4}, "parallel": {"expert": 3}}
    try:
        cfg = TrainConfig.model_validate(own)
    finally:
        del registry._TYPES["MIXTURE"]
    cfg.check_world(4)
    assert cfg.degrees(4).expert == 1
    (named,) = cfg.settings_without_effect("cpu")
    assert named == "parallel.expert.size (the model type is your own, with experts of its own)"

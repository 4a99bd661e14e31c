"""The mesh of ranks that only read a model, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from evo_core.errors import ConfigError
from evo_core.parallel.inference import inference_mesh
from tests.config.jobs import job
from tests.parallel.test_own_type import config as own_type
from tests.ranks import run_on_ranks


def test_the_ranks_of_a_copy() -> None:
    """Of 8 ranks two copies: tensor ranks are neighbours, then come the copies, then the stages."""
    model = job().model

    def axes() -> Any:
        mesh = inference_mesh(model, tensor=2, pipeline=2)
        return mesh.tensor.ranks, mesh.pipeline.ranks, mesh.data.ranks, mesh.zero.size

    found = run_on_ranks(axes, 8)
    assert found[0] == ((0, 1), (0, 4), (0, 2), 1)
    assert found[7] == ((6, 7), (3, 7), (5, 7), 1)


def refusals(ranks: int, *sizes: tuple[int, int], model: Any = None) -> list[str]:
    """What ranks are told that ask for tensor and pipeline sizes; the same on each."""
    model = job().model if model is None else model

    def told() -> list[str]:
        found = []
        for tensor, pipeline in sizes:
            with pytest.raises(ConfigError) as caught:
                inference_mesh(model, tensor, pipeline, keys=("--tensor", "--pipeline"))
            found.append(str(caught.value))
        return found

    (first, *others) = run_on_ranks(told, ranks)
    assert all(other == first for other in others)
    return first


def test_what_does_not_fit_the_model_or_the_ranks_names_what_fits_both() -> None:
    assert refusals(6, (1, 6), (2, 2), (3, 2)) == [
        "--pipeline: 4 layers are too few for 6 stages (nearest: 3)",
        "--tensor: 6 ranks do not divide into pipeline 2 x tensor 2 (nearest: tensor 1 or 3, or pipeline 1 or 3, or "
        "start 8 ranks)",
        "--tensor: 3 ranks cannot share vocab_size 128, num_attention_heads 4, an MLP 256 wide, hidden_size 64 "
        "(nearest on 6 ranks: 1)",
    ]


def test_a_model_type_of_ones_own_has_no_stages() -> None:
    model = own_type()
    assert refusals(2, (1, 2), model=model) == [
        f"--pipeline: 2: {model.model_type} is a model type of your own, which has no stages "
        "(set it to 1; ranks can share each of its layers: docs/models.md)"
    ]

"""A step of a small model on the stages of a pipeline: on these ranks, by torch's own stages, and on one process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from evo_core.config import ModelConfig
from evo_core.model import Decoder, ModelOutput, build_model
from evo_core.model.draws import Draws
from evo_core.optim.groups import groups_of
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.parallel.apply import build_parallel
from evo_core.parallel.mesh import Mesh
from evo_core.parallel.passes import MicroBatch
from evo_core.parallel.pipeline.placing import Placing
from evo_core.parallel.pipeline.stages import Pipeline
from evo_core.placement import Placed, Placement, placements_of
from tests.model.configs import packed, randomise, tiny
from tests.parallel.meshes import mesh_of

MOE_COEFF = 0.3
DOCUMENTS = ([5, 1, 9, 2], [3, 6, 4, 4], [1, 1, 8, 7], [10, 2, 2, 3], [4, 4, 4, 5])
"""Of micro-batches in turn: other places for the same number of tokens."""

EXPERTS: dict[str, Any] = {"model_type": "INTERNLM_MoE", "num_experts": 4, "moe": {"capacity_factor": 0.5}}


def small(**settings: Any) -> ModelConfig:
    return tiny(**{"num_layers": 4, "dtype": "torch.float64", **settings})


def micro_batch(number: int) -> MicroBatch:
    """The number-th of a step, whatever its rank."""
    made = packed(DOCUMENTS[number % len(DOCUMENTS)], seed=number)
    more = {"labels": made["labels"], "draws": draws(number)}
    return MicroBatch(made["input_ids"], made["positions"], made["cu_seqlens"], more)


def draws(number: int) -> Draws:
    """What a router draws from in a micro-batch."""
    return Draws(1, 2, number)


def whole_model(cfg: ModelConfig) -> Decoder:
    model = build_model(cfg)
    assert isinstance(model, Decoder)
    randomise(model)
    return model


def stages_of(cfg: ModelConfig, mesh: Mesh, placing: Placing) -> Decoder:
    """This rank's part of the whole model."""
    model, state = build_parallel(cfg, mesh, "cpu", placing=placing), whole_model(cfg).state_dict()
    assert isinstance(model, Decoder)
    placements = placements_of(model)
    for name, parameter in model.named_parameters():
        whole = state[name]
        Placed(parameter.data, placements.get(name) or Placement.whole(whole.shape, mesh.data.ranks)).fill(whole)
    return model


def optimizer_of(model: nn.Module, mesh: Mesh, **settings: Any) -> Zero1AdamW:
    order = [name for name, _ in model.named_parameters()]
    return Zero1AdamW(groups_of(model, mesh), mesh.world, **{"bucket_size": 3000, "order": order, **settings})


mesh = functools.cache(mesh_of)
"""Made once in the life of a rank, which is forked for a test."""


class Step:
    """This rank's stages with an optimizer, and the losses of its last step.

    Args:
        prepare: is given the model before its optimizer is made.
        settings: of the optimizer.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        placing: Placing,
        mode: str,
        *,
        overlap: bool = True,
        zero1: int = 1,
        tensor: int = 1,
        prepare: Callable[[Decoder], object] = lambda model: None,
        **settings: Any,
    ) -> None:
        self.mesh = mesh(zero1, pipeline=placing.ranks, tensor=tensor)
        self.model = stages_of(cfg, self.mesh, placing)
        prepare(self.model)
        self.optimizer = optimizer_of(self.model, self.mesh, **settings)
        self.pipeline = Pipeline(self.model, self.mesh.pipeline, placing, mode=mode, overlap=overlap)
        self.losses: list[float] = []

    def backward(self, count: int, scale: float = 1.0) -> float:
        """Make the gradients of a step of so many micro-batches on each data rank; their norm.

        Args:
            scale: of the objective.
        """
        self.losses = []
        data = self.mesh.data

        def of_this_rank(number: int) -> MicroBatch:
            return micro_batch(number * data.size + data.rank)

        def objective(number: int, output: ModelOutput) -> Tensor:
            assert output.loss is not None and number == len(self.losses)
            self.losses.append(float(output.loss.detach()))
            return output.objective(MOE_COEFF) * scale / count

        self.optimizer.begin()
        self.pipeline.forward_backward(count, of_this_rank, objective, self.optimizer)
        return self.optimizer.reduce(torch.zeros(0, dtype=torch.float64)).norm

    def gradients(self) -> dict[str, Tensor]:
        """Those of this rank's parameters."""
        return {name: placed.local.clone() for name, placed in self.optimizer.gradients().items()}


def of_one_process(
    cfg: ModelConfig, count: int, prepare: Callable[[Decoder], object] = lambda model: None
) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of a step's micro-batches and its gradients, made by autograd alone in the model's own type."""
    model, losses = whole_model(cfg), []
    prepare(model)
    for number in range(count):
        batch = micro_batch(number)
        output = model(batch.input_ids, batch.positions, batch.cu_seqlens, **batch.more)
        losses.append(float(output.loss.detach()))
        (output.objective(MOE_COEFF) / count).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def of_all_ranks(gradients: Iterator[dict[str, Tensor]] | list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Those of all stages, by name; one that several have is the same on each."""
    found: dict[str, Tensor] = {}
    for of_rank in gradients:
        for name, gradient in of_rank.items():
            assert name not in found or torch.equal(found[name], gradient), name
            found[name] = gradient
    return found

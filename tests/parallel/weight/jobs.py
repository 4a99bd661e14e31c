"""Steps of a small model whose weights are gathered, and the same steps on one process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
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
from evo_core.parallel.passes import MicroBatch, Passes, WholeModel
from evo_core.parallel.pipeline.placing import Placing
from evo_core.parallel.pipeline.stages import Pipeline
from evo_core.parallel.weight.blocks import gathering_of
from evo_core.parallel.weight.gathering import Gathering
from evo_core.placement import Placed, placements_of
from tests.model.configs import packed, randomise, tiny
from tests.parallel.meshes import mesh_of

MOE_COEFF = 0.3
DOCUMENTS = ([5, 1, 8, 2], [3, 6, 4, 3], [1, 1, 8, 6], [10, 2, 2, 2], [4, 4, 4, 4])
"""Of micro-batches in turn: other places for the same number of tokens, which 4 ranks can share."""

EXPERTS: dict[str, Any] = {"model_type": "INTERNLM_MoE", "num_experts": 4, "moe": {"capacity_factor": 0.5}}

Prepare = Callable[[Decoder], object]


def small(**settings: Any) -> ModelConfig:
    """A `model` block in float64, with 4 heads and as many layers."""
    return tiny(**{"num_layers": 4, "dtype": "torch.float64", "vocab_size": 64, **settings})


def micro_batch(number: int) -> MicroBatch:
    """The number-th of a step, whatever its rank."""
    made = packed(DOCUMENTS[number % len(DOCUMENTS)], vocab_size=64, seed=number)
    more = {"labels": made["labels"], "draws": Draws(1, 2, number)}
    return MicroBatch(made["input_ids"], made["positions"], made["cu_seqlens"], more)


def whole_model(cfg: ModelConfig) -> Decoder:
    """All of the model, as on one process."""
    model = build_model(cfg)
    assert isinstance(model, Decoder)
    randomise(model)
    return model


def nothing(model: Decoder) -> None:
    """No change."""


def of_one_process(
    cfg: ModelConfig, count: int, *, scale: float = 1.0, prepare: Prepare = nothing
) -> dict[str, Tensor]:
    """The gradients of a step of so many micro-batches, made by autograd alone.

    Args:
        scale: of all weights.
        prepare: is given the model.
    """
    model = whole_model(cfg)
    scaled(model, scale)
    prepare(model)
    for number in range(count):
        output = model(*arguments(micro_batch(number)), **micro_batch(number).more)
        (output.objective(MOE_COEFF) / count).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def scaled(model: nn.Module, scale: float) -> None:
    """Multiply all weights: an update that is the same on every rank, whatever it holds."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)


mesh = functools.cache(mesh_of)
"""Made once in the life of a rank, which is forked for a test."""


@functools.cache
def isp(tensor: int, weight: int, pipeline: int = 1, zero1: int = 1) -> Mesh:
    """The mesh of isp with so many ranks that share the sequence, and so many that share each weight."""
    return mesh_of(zero1, tensor={"size": tensor, "mode": "isp"}, weight={"size": weight}, pipeline=pipeline)


class Job:
    """This rank's part of a model with an optimizer, to make the gradients of steps.

    Args:
        tensor, weight: ranks that share the sequence, and each weight.
        placing: of the stages of a pipeline.
        mode: of the pipeline.
        prepare: is given the model before its optimizer is made.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        tensor: int,
        weight: int,
        *,
        overlap: bool = False,
        pool: bool = False,
        placing: Placing | None = None,
        mode: str = "1F1B",
        prepare: Prepare = nothing,
    ) -> None:
        self.mesh = isp(tensor, weight, placing.ranks if placing else 1)
        model = build_parallel(cfg, self.mesh, "cpu", placing=placing, overlap=overlap, memory_pool=pool)
        assert isinstance(model, Decoder)
        placements, state = placements_of(model), whole_model(cfg).state_dict()
        for name, parameter in model.named_parameters():
            Placed(parameter.data, placements[name]).fill(state[name])
        prepare(model)
        self.model = model
        self.passes: Passes = (
            Pipeline(model, self.mesh.pipeline, placing, mode=mode) if placing is not None else WholeModel(model)
        )

    @functools.cached_property
    def optimizer(self) -> Zero1AdamW:
        """Adds up what the ranks that hold the same see of a gradient."""
        order = [name for name, _ in self.model.named_parameters()]
        return Zero1AdamW(groups_of(self.model, self.mesh), self.mesh.world, bucket_size=3000, order=order)

    @property
    def gathering(self) -> Gathering:
        """How its weights come here."""
        found = gathering_of(self.model)
        assert found is not None
        return found

    def of_rank(self, number: int) -> MicroBatch:
        """The number-th micro-batch of this data rank."""
        return micro_batch(number * self.mesh.data.size + self.mesh.data.rank)

    def train(self, count: int, *, within: Callable[[int], object] = lambda number: None) -> None:
        """Make the gradients of a step of so many micro-batches on each data rank.

        Args:
            within: called between the forward and the backward pass of each, with its number.
        """

        def objective(number: int, output: ModelOutput) -> Tensor:
            within(number)
            return output.objective(MOE_COEFF) / count

        self.optimizer.begin()
        self.passes.forward_backward(count, self.of_rank, objective, self.optimizer)
        self.optimizer.reduce(torch.zeros(0, dtype=torch.float64))

    def alone(self, count: int, reference: Mapping[str, Tensor]) -> float:
        """The deviation of the gradients of gathered weights from those of one process, made by autograd alone: an
        optimizer cannot begin anew in the middle of a step. For one data rank, and ranks that are one weight group."""
        self.model.zero_grad()
        for number in range(count):
            batch = self.of_rank(number)
            output = self.model(*arguments(batch), **batch.more)
            (output.objective(MOE_COEFF) / count).backward()
        gathered = {name: held.placement for name, held in self.model.held.items() if held.gathered}
        grads = {name: self.model.get_parameter(name).grad for name in gathered}
        return _deviation({n: Placed(grads[n], at) for n, at in gathered.items() if grads[n] is not None}, reference)

    def evaluate(self, count: int = 1) -> list[float]:
        """The losses of so many micro-batches, without gradients."""
        found: list[float] = []

        def take(number: int, output: ModelOutput) -> None:
            assert output.loss is not None
            found.append(float(output.loss))

        self.passes.forward(count, self.of_rank, take)
        return found

    def deviation(self, reference: Mapping[str, Tensor]) -> float:
        """The largest one of this rank's gradients from those of one process, relative to its largest element."""
        return _deviation(self.optimizer.gradients(), reference)


def _deviation(found: Mapping[str, Placed], reference: Mapping[str, Tensor]) -> float:
    assert found and set(found) <= set(reference)
    return max(
        float((view - piece.where.of(reference[name])).abs().max() / reference[name].abs().max())
        for name, placed in found.items()
        for piece, view in placed.pieces()
    )


def arguments(batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The first ones of a decoder."""
    return batch.input_ids, batch.positions, batch.cu_seqlens

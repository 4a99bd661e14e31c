"""A pipeline at work: this rank's stages, carrying out a timetable.

What torch.distributed.pipelining has for this (`PipelineStage` and its schedules) computes the same, and tests compare
with it. It sets memory aside for the hidden states and gradients of all micro-batches of a step at once, and keeps all
that it sent until the end of the step; it wants at least as many micro-batches as stages, and runs a first pass only to
learn shapes. Here memory is taken when a message is expected and given back behind its backward pass, so that as many
micro-batches are in memory as the schedule says. The first half of a zero-bubble backward pass is torch's.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evo_core.model.decoder import Decoder, ModelOutput
from evo_core.model.dtypes import accumulation_dtype
from evo_core.parallel.collectives import Pending, receive, send
from evo_core.parallel.mesh import Axis, Mesh
from evo_core.parallel.pipeline.halves import weight_half
from evo_core.parallel.pipeline.orders import Pass, Work, forward_only, one_forward_one_backward, zero_bubble
from evo_core.parallel.pipeline.placing import Placing, placing_of
from evo_core.parallel.pipeline.timetable import Message, Timetable, timetable

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.optim.protocol import Optimizer
    from evo_core.parallel.passes import MicroBatch


class Pipeline:
    """The passes of a model whose layers lie on the ranks of the pipeline axis (`evo_core.parallel.passes.Passes`).

    Args:
        model: this rank's stages.
        axis: the pipeline's ranks.
        placing: of the stages on them.
        mode: 1F1B (with several chunks interleaved), ZBH1 or ZBV.
        overlap: whether messages are under way while passes are computed; else each is waited for at once.

    Attributes:
        after_pass: called behind each pass of `forward_backward`, for whoever counts what it left in memory.
    """

    def __init__(
        self, model: Decoder, axis: Axis, placing: Placing, *, mode: str = "1F1B", overlap: bool = True
    ) -> None:
        self.model, self.axis, self.placing = model, axis, placing
        self.mode, self.overlap = mode, overlap
        self.after_pass: Callable[[Work], None] = lambda work: None
        self.stages = dict(zip(placing.stages_of(axis.rank), model.stages, strict=True))
        if mode != "1F1B":
            model.backward_in_parts = True

    @classmethod
    def of(cls, model: Decoder, mesh: Mesh, cfg: TrainConfig | None) -> Pipeline:
        """That of a job; without one, for passes without gradients over one stage on each rank.

        Raises:
            ValueError: there are several, and no job that says how they lie.
        """
        if cfg is None:
            if len(model.stages) > 1:
                raise ValueError("a model of several stages on a rank needs the configuration that placed them")
            return cls(model, mesh.pipeline, Placing(mesh.pipeline.size))
        said, placing = cfg.parallel.pipeline, placing_of(cfg)
        return cls(
            model, mesh.pipeline, placing, mode=said.mode, overlap=said.interleaved_overlap or placing.chunks == 1
        )

    @property
    def has_output(self) -> bool:
        """Whether the last stage is here."""
        return self.placing.rank_of(self.placing.stages - 1) == self.axis.rank

    @property
    def at_once(self) -> int:
        """Stages wait for each other at the beginning and the end of a call, here for less than a fifth of it; and so
        many hidden states may have to wait between two of them."""
        return 4 * self.placing.ranks

    def timetable(self, count: int, *, gradients: bool = True) -> Timetable:
        """What every rank does with so many micro-batches."""
        return _timetable(self.placing, self.mode if gradients else None, count)

    def forward_backward(
        self,
        count: int,
        micro_batch: Callable[[int], MicroBatch],
        objective: Callable[[int, ModelOutput], Tensor],
        optimizer: Optimizer,
    ) -> None:
        """See `Passes`."""
        steps = self.timetable(count).steps[self.axis.rank]
        run, last = _Run(self, micro_batch), self._last_passes(steps)
        for step in steps:
            if isinstance(step, Message):
                run.exchange(step)
                continue
            if step.kind is Pass.FORWARD:
                run.forward(step, lambda number, output: optimizer.scaled(objective(number, output)))
            else:
                optimizer.final(last.get(step, ()))
                run.backward(step)
                if step.kind is Pass.WEIGHT:
                    optimizer.collect()  # some of its gradients call no hook
            self.after_pass(step)
        run.finish()

    @torch.no_grad()
    def forward(
        self, count: int, micro_batch: Callable[[int], MicroBatch], take: Callable[[int, ModelOutput], None]
    ) -> None:
        """See `Passes`."""
        run = _Run(self, micro_batch)
        for step in self.timetable(count, gradients=False).steps[self.axis.rank]:
            if isinstance(step, Message):
                run.exchange(step)
            else:
                run.forward(step, take)
        run.finish()

    def _parameters_of(self, stage: int) -> list[nn.Parameter]:
        model, here = self.model, self.stages[stage]
        modules: list[Any] = [model.blocks[str(number)] for number in here.blocks]
        if here.has_embedding:
            modules.append(model.embedding)
        if here.has_head:
            modules += [module for module in (model.norm, model.head) if module is not None]
            if model.head is not None and model.head.is_tied:
                modules.append(model.embedding)
        return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]

    def _last_passes(self, steps: Iterable[Work | Message]) -> dict[Work, list[nn.Parameter]]:
        """The parameters of which a pass makes the last gradient of the step."""
        of_stages: dict[int, Work] = {}
        for step in steps:
            if isinstance(step, Work) and step.kind in (Pass.BACKWARD, Pass.WEIGHT):
                of_stages.pop(step.stage, None)
                of_stages[step.stage] = step  # behind those of other stages, which may have the same parameter
        last = {id(each): (step, each) for stage, step in of_stages.items() for each in self.parameters[stage]}
        found: dict[Work, list[nn.Parameter]] = {}
        for step, parameter in last.values():
            found.setdefault(step, []).append(parameter)
        return found

    @functools.cached_property
    def parameters(self) -> dict[int, list[nn.Parameter]]:
        """The trained ones that each stage of this rank computes with."""
        return {stage: self._parameters_of(stage) for stage in self.stages}


def timetable_of(cfg: TrainConfig, count: int) -> Timetable:
    """What every rank of a job's pipeline does with so many micro-batches in a step."""
    return _timetable(placing_of(cfg), cfg.parallel.pipeline.mode, count)


@functools.lru_cache(maxsize=64)
def _timetable(placing: Placing, mode: str | None, count: int) -> Timetable:
    """Made once for each number of micro-batches: a step's, one of ramp-up, an evaluation's."""
    if mode is None:
        return timetable(placing, forward_only(placing, count))
    order = one_forward_one_backward if mode == "1F1B" else zero_bubble
    return timetable(placing, order(placing, count))


@dataclass
class _Alive:
    """A forward pass whose backward pass is not done.

    Attributes:
        received: what the stage before sent, of which the gradients go back there.
        root: where the backward pass begins.
        gradients: of what was sent on, for `root`; empty at the last stage.
        halves: what the first half of a backward pass leaves for the second.
    """

    received: list[Tensor]
    root: Tensor
    gradients: list[Tensor | None] = field(default_factory=list)
    halves: list[dict[str, Any]] | None = None


class _Run:
    """One step of this rank: what is under way and what is alive."""

    def __init__(self, pipeline: Pipeline, micro_batch: Callable[[int], MicroBatch]) -> None:
        self._pipeline, self._model = pipeline, pipeline.model
        self._micro_batch = functools.cache(micro_batch)
        self._alive: dict[tuple[int, int], _Alive] = {}
        self._coming: dict[tuple[bool, int, int], tuple[list[Tensor], list[Pending]]] = {}
        self._going: dict[tuple[bool, int, int], list[Tensor]] = {}
        self._sent: deque[tuple[list[Pending], list[Tensor]]] = deque()

    def exchange(self, message: Message) -> None:
        """Post a message; where messages are not overlapped with passes, wait for it.

        What is sent is in memory until it is waited for: gloo does not say before that a message has arrived. So the
        oldest is waited for when more are under way than there are stages.
        """
        key = (message.forward, message.stage, message.micro_batch)
        tensors = self._going.pop(key) if message.sends else self._room(message.micro_batch)
        start = send if message.sends else receive
        works = [start(tensor, message.peer, self._pipeline.axis.group) for tensor in tensors]
        if not self._pipeline.overlap:
            _wait_once(works)
        if not message.sends:
            self._coming[key] = tensors, works
            return
        self._sent.append((works, tensors))
        if len(self._sent) > self._pipeline.placing.stages:
            _wait_once(self._sent.popleft()[0])

    def forward(self, work: Work, take: Callable[[int, ModelOutput], Any]) -> None:
        """A forward pass; the output of the last stage is taken, and what is made of it is what is differentiated."""
        here, batch = self._pipeline.stages[work.stage], self._micro_batch(work.micro_batch)
        received = [] if here.has_embedding else self._arrived(True, work)
        if torch.is_grad_enabled():
            for tensor in received:
                tensor.requires_grad_()
        x, balance = (received[0] if received else batch.input_ids), received[1] if len(received) > 1 else None
        output: ModelOutput = self._model(
            x, batch.positions, batch.cu_seqlens, **batch.more, moe_loss=balance, stage=here
        )
        if here.has_head:
            root = take(work.micro_batch, output)
            if torch.is_grad_enabled():
                self._alive[work.stage, work.micro_batch] = _Alive(received, root)
            return
        outputs = [tensor for tensor in (output.hidden, output.moe_loss) if tensor is not None]
        if torch.is_grad_enabled():
            alive = _Alive(received, outputs[0])
            alive.root = _Root.apply(alive.gradients, *outputs)
            self._alive[work.stage, work.micro_batch] = alive
        self._hand_on(True, work.stage + 1, work, [tensor.detach().contiguous() for tensor in outputs])

    def backward(self, work: Work) -> None:
        """A backward pass, or a half of one."""
        key, here = (work.stage, work.micro_batch), self._pipeline.stages[work.stage]
        alive, first = self._alive[key], not self._alive[key].received
        if work.kind is not Pass.WEIGHT and not here.has_head:
            alive.gradients += self._arrived(False, work)
        if work.kind is Pass.BACKWARD or (first and work.kind is Pass.WEIGHT):
            if alive.root.requires_grad:  # else nothing of a first stage is trained
                alive.root.backward()
        elif work.kind is Pass.INPUT and not first:
            # Here, since torch's pipelines import its compiler, which takes a second.
            from torch.distributed.pipelining._backward import stage_backward_input

            _, alive.halves = stage_backward_input(
                [alive.root], None, alive.received, iter(self._pipeline.parameters[work.stage])
            )
        elif work.kind is Pass.WEIGHT and alive.halves is not None:
            weight_half(alive.halves)
        if work.kind is not Pass.INPUT:
            del self._alive[key]
        if work.kind is not Pass.WEIGHT and not first:
            back = [torch.zeros_like(t) if t.grad is None else t.grad.contiguous() for t in alive.received]
            for tensor in alive.received:
                tensor.grad = None
            self._hand_on(False, work.stage - 1, work, back)

    def finish(self) -> None:
        """Wait until all that was sent has arrived."""
        for works, _ in self._sent:
            _wait_once(works)
        assert not (self._alive or self._coming or self._going)

    def _room(self, number: int) -> list[Tensor]:
        """Memory for what a stage hands on of a micro-batch, or for its gradient."""
        model, ids = self._model, self._micro_batch(number).input_ids
        rows = len(ids) // model.rows[1]
        tensors = [torch.empty(rows, model.cfg.hidden_size, dtype=model.stream_dtype, device=ids.device)]
        if model.cfg.num_experts > 1:
            tensors.append(tensors[0].new_empty((), dtype=accumulation_dtype(model.dtype)))
        return tensors

    def _arrived(self, forward: bool, work: Work) -> list[Tensor]:
        tensors, works = self._coming.pop((forward, work.stage, work.micro_batch))
        _wait_once(works)
        return tensors

    def _hand_on(self, forward: bool, stage: int, work: Work, tensors: list[Tensor]) -> None:
        """To the neighbour; where it is on this rank too, without a message."""
        if stage in self._pipeline.stages:
            self._coming[forward, stage, work.micro_batch] = tensors, []
        else:
            self._going[forward, work.stage, work.micro_batch] = tensors


def _wait_once(works: list[Pending]) -> None:
    """Wait for each of some messages, and forget them: asked again, gloo would wait for another one behind it."""
    for work in works:
        work.wait()
    works.clear()


class _Root(torch.autograd.Function):
    """Where the backward pass of a stage without a head begins: what the stage handed on need not be kept for it."""

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], *outputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return outputs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.gradients)

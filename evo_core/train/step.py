"""One step of training: forward and backward of its micro-batches, one reduction, an update; and the evaluation.

`TrainStep.forward_backward` and `TrainStep.evaluate` alone know how a batch goes through the model: how many passes
there are, where labels go, which rank computes the loss. The rest of a step only sees sums.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from evo_core.evaluate.holdout import holdout
from evo_core.parallel.collectives import seconds_waited
from evo_core.parallel.passes import MicroBatch, passes_of
from evo_core.storage.location import is_remote
from evo_core.storage.stage import stage
from evo_core.train.averages import SpeedAverages
from evo_core.train.chance import draws_of_micro_batch
from evo_core.train.checkpointing import Asked
from evo_core.train.metrics import StepTotals, segments, visible_pairs
from evo_core.train.optimizer import make_schedules
from evo_core.train.reading import raise_unread
from evo_core.train.record import Measured, StepRecord
from evo_core.train.timers import Computing, Timers

if TYPE_CHECKING:
    from evo_core.checkpoint import TrainState
    from evo_core.config import TrainConfig
    from evo_core.data import Batch
    from evo_core.model import ModelOutput
    from evo_core.optim.protocol import Optimizer
    from evo_core.parallel.mesh import Mesh
    from evo_core.train.throughput import Throughput

log = logging.getLogger(__name__)


class TrainStep:
    """What is done with a batch. Every rank calls the same methods in the same order.

    Args:
        cfg: the job.
        mesh: the ranks.
        model, optimizer: trained together.
        speed: what says how fast steps are.
        types: data types, in the order of a batch's type ids.
        device: of the model.

    Attributes:
        timers: of the last step that was trained on, on this rank.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        mesh: Mesh,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        speed: Throughput,
        types: Sequence[str],
        device: torch.device,
    ) -> None:
        self._cfg, self._mesh, self._types, self._device = cfg, mesh, types, device
        self.model, self.optimizer, self._speed = model, optimizer, speed
        self._averages = SpeedAverages()
        self.timers: Timers | None = None
        self.lr, self.beta2 = make_schedules(cfg)
        folder = cfg.data.valid_folder
        if folder is not None and is_remote(folder) and not cfg.data.valid_every:
            folder = None  # nobody asks for scores: nothing is copied
        self._held_out = None if folder is None else stage(folder)
        self.passes = passes_of(model, mesh, cfg)

    def train(
        self, batch: Batch, state: TrainState, asked: Asked, *, began: float, unread: Exception | None = None
    ) -> StepRecord:
        """Train on a batch: one update, unless gradients are inf or nan.

        Args:
            batch: this rank's, on the CPU.
            state: where the run is; updates and loss are noted in it.
            asked: what this rank has heard from outside; the record says what all have.
            began: when the batch was asked for, by `time.perf_counter`.
            unread: why another batch stands for the one that could not be read on this rank (`Reading`).

        Raises:
            UserError: a rank could not read its batch; on every rank.
            RankFailed: the same, where that was no user's mistake.
        """
        self.optimizer.begin()
        computing = time.perf_counter()
        pairs = visible_pairs(batch.cu_seqlens)
        cut = segments(batch.cu_seqlens)  # before the batch is on a GPU, where reading a length would wait for it
        own = Computing(self._device)
        totals = self.forward_backward(batch.to(self._device, non_blocking=True), state.step, cut["largest_length"])
        own.done()
        if self._mesh.tensor.rank == self._mesh.pipeline.rank == 0:
            totals.add_pairs(pairs)
        totals.tell(stop=asked.stop, stop_file=asked.stop_file, unread=unread is not None)
        reducing = time.perf_counter()
        grad_norm, totals.vector = self.optimizer.reduce(totals.vector)
        reduced, waited = time.perf_counter(), seconds_waited()

        # From here on every rank knows the sums of all, and all decide alike.
        if totals.unread:
            raise_unread(unread)
        if self.optimizer.step(self.lr(state.updates), self.beta2(state.updates)):
            state.updates += 1
        else:
            state.skipped_updates += 1
        state.loss = totals.loss / self._mesh.data.size
        now = time.perf_counter()
        times = (now - began, reduced - computing)
        data = computing - began if self._mesh.tensor.rank == 0 else math.nan
        update = now - reduced - (seconds_waited() - waited)
        self.timers = Timers(data, own.seconds(), reduced - reducing, update)
        measured = self._measured(totals, grad_norm, batch.micro_num, cut, state, times)
        return self._record(batch, state, measured, Asked(totals.stop, totals.stop_file))

    def skip(self, batch: Batch, state: TrainState) -> StepRecord:
        """The record of a batch that was drawn and is not trained on."""
        return self._record(batch, state, None, Asked())

    def forward_backward(self, batch: Batch, step: int, max_seqlen: int) -> StepTotals:
        """Add the gradients of a step's micro-batches to the optimizer's; the last backward starts their reduction.

        Args:
            batch: on the device of the model.
            step: its number: what the model draws is a function of it.
            max_seqlen: tokens of the longest document of the batch.

        Returns:
            The sums of this rank, which are nobody else's yet.
        """
        cfg, mesh, micro_num = self._cfg, self._mesh, batch.micro_num
        totals = StepTotals(self._types, self._device)
        counts = mesh.tensor.rank == 0  # the ranks that share a model see the same tokens and the same loss

        def micro_batch(i: int) -> MicroBatch:
            number = i * mesh.data.size + mesh.data.rank
            draws = draws_of_micro_batch(self.model, cfg.seed, step, number, batch.input_ids.shape[1])
            more = {"labels": batch.labels[i], "max_seqlen": max_seqlen, "label_smoothing": cfg.loss.label_smoothing}
            return MicroBatch(batch.input_ids[i], batch.positions[i], batch.cu_seqlens[i], more | draws)

        def objective(i: int, output: ModelOutput) -> torch.Tensor:
            if counts:
                totals.add_output(output, batch.labels[i], batch.type_ids[i], micro_num)
            return output.objective(cfg.loss.moe_loss_coeff) / micro_num

        self.passes.forward_backward(micro_num, micro_batch, objective, self.optimizer)
        return totals

    def evaluate(self) -> dict[str, float]:
        """Held-out scores as fields of a step's record: ``val/<type>_loss``, ``_acc`` and ``_plex``, of all ranks."""
        self.optimizer.settle()  # not every rank has a batch for each of the others'
        data = self._cfg.data
        scores = holdout(
            self.model,
            self._held_out,
            seq_len=data.seq_len,
            micro_bsz=data.micro_bsz,
            mesh=self._mesh,
            passes=self.passes,
            at_once=data.valid_micro_num if self._mesh.pipeline.size > 1 else None,
            device=self._device,
            mask_token_zero=data.mask_token_zero,
            vocab_size=self._cfg.model.vocab_size,
        )
        fields = {}
        for name, score in scores.items():
            fields[f"val/{name}_loss"] = score["loss"]
            fields[f"val/{name}_acc"] = score["acc"]
            fields[f"val/{name}_plex"] = score["perplexity"]
        return fields

    def _measured(
        self,
        totals: StepTotals,
        grad_norm: float,
        micro_num: int,
        cut: dict[str, int],
        state: TrainState,
        times: tuple[float, float],
    ) -> Measured:
        """What a step that is done measured; rates are those of the next update, which logs have always shown."""
        seconds, fwd_bwd_seconds = times
        dp, speed = self._mesh.data.size, self._speed
        return Measured(
            loss=totals.loss / dp,
            grad_norm=grad_norm,
            lr=self.lr(state.updates),
            beta2=self.beta2(state.updates),
            loss_scale=self.optimizer.scaler.scale,
            micro_num=micro_num,
            segments=cut,
            by_type=totals.moe(dp) | totals.quality(),
            speed=speed.utilization(micro_num, totals.pairs, seconds)
            | self._averages.add(speed.tgs(micro_num, seconds) * seconds, seconds),
            seconds=seconds,
            fwd_bwd_seconds=fwd_bwd_seconds,
            tflops=speed.tflops(micro_num, seconds),
            tgs=speed.tgs(micro_num, seconds),
            tokens_per_second=speed.step_tokens(micro_num) / seconds,
            time=time.time(),
        )

    def _record(self, batch: Batch, state: TrainState, measured: Measured | None, asked: Asked) -> StepRecord:
        tokens = state.tokens + self._speed.step_tokens(batch.micro_num)
        return StepRecord(state.step, tokens, state.skipped_updates, measured, asked=asked)

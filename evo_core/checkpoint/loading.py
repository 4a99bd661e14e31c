"""Loading: choose a checkpoint, and take from it what is asked for; what is read is compared with its digests."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import nn

from evo_core.checkpoint import folder as folders
from evo_core.checkpoint.allowed import Allow, content_to_state, listed
from evo_core.checkpoint.generation_settings import ending_of, generation_of
from evo_core.checkpoint.manifest import Manifest, read_manifest
from evo_core.checkpoint.run import UNKNOWN, Run
from evo_core.checkpoint.same_rule import check_rule
from evo_core.checkpoint.soundness import check_listed, damage, damaged, unchecked
from evo_core.checkpoint.tensors import (
    MODEL,
    OPTIMIZER,
    check_model,
    check_tensors,
    read_model,
    read_tensors,
    unread,
)
from evo_core.checkpoint.train_state import TrainState
from evo_core.errors import CheckpointError, DamagedError
from evo_core.model.cutting import all_stages
from evo_core.parallel.collectives import failing_together, gather_objects, on_first
from evo_core.placement import Placed
from evo_core.storage.files import below
from evo_core.storage.location import Location

if TYPE_CHECKING:
    from evo_core.checkpoint.stored import Reader
    from evo_core.optim.protocol import Optimizer

_MASTER = "master."

log = logging.getLogger(__name__)


def verify(folder: Location, *, loads: bool = False) -> Manifest:
    """Read a checkpoint through and compare it with its manifest, the files shared out over all ranks.

    Every rank must call it, and all come to the same result.

    Args:
        loads: it is loaded next: of files that are compared while they are read only the sizes are looked at.

    Raises:
        DamagedError: it is incomplete, or a file is missing or damaged.
        CheckpointError: the store does not answer.
    """
    manifest = on_first(lambda: _manifest_of_all(folder))
    names = sorted(unchecked(manifest, manifest.files) if loads else manifest.files)
    with failing_together():
        own = damage(folder, manifest, names[dist.get_rank() :: dist.get_world_size()])
    problems = [problem for part in gather_objects(own) for problem in part]
    if problems:
        raise damaged(folder, problems)
    return manifest


def _manifest_of_all(folder: Location) -> Manifest:
    manifest = read_manifest(folder)
    check_listed(folder, manifest)
    return manifest


class Candidates:
    """The complete checkpoints of a run, of which the newest whole one is wanted; every rank makes one and calls alike.

    Whether the files of tensors are whole shows only when they are read. So whoever loads one that turns out to be
    damaged asks for the next.

    Args:
        root: the save folder.
        run: default the one that saved last.
    """

    def __init__(self, root: Location, run: Run | None = None) -> None:
        self._root, self._run = root, run
        self._found = on_first(lambda: folders.complete_ones(root, run))
        self._at = 0
        self._problems: list[DamagedError] = []

    def next(self) -> tuple[Location, Run] | None:
        """The next older one that is whole as far as can be told without loading it; says why it is not one before.

        Returns:
            Its folder, and the run with what was passed over; None where nothing was completed yet.

        Raises:
            CheckpointError: there are complete ones, and every one is damaged; or the store does not answer.
        """
        while self._at < len(self._found):
            found = self._found[self._at]
            names = (f.name for f in self._found[: self._at])
            self._at += 1
            try:
                verify(found.path, loads=True)
            except DamagedError as error:
                self.damaged(error)
                continue
            own = found.run or self._run or UNKNOWN
            return found.path, replace(own, passed_over=tuple(dict.fromkeys([*own.passed_over, *names])))
        if self._problems:
            raise CheckpointError(
                f"no checkpoint of the run is whole, of {len(self._problems)}; the newest: {self._problems[0]}",
                file=self._root,
                key="ckpt.save_ckpt_folder",
                hint="put back a whole copy of one; to start over, name another folder or set ckpt.auto_resume false",
            )
        return None

    def damaged(self, error: DamagedError) -> None:
        """Note that the one given last is damaged."""
        self._problems.append(error)
        if dist.get_rank() == 0 and self._at < len(self._found):
            log.warning("%s: falling back to the checkpoint before it", error)


def load(
    folder: Location,
    model: nn.Module,
    optimizer: Optimizer,
    content: Collection[str] = ("all",),
    allow: Allow | None = None,
) -> TrainState:
    """Fill model and optimizer from a verified checkpoint, at whatever layout it was written.

    Args:
        model: where `allow` says that tensors may be missing, with first weights.
        content: "model" with any of "sampler" (how far it is in the data), "optimizer" (Adam's moments, loss scale) and
            "scheduler" (place in the schedules); or "all".
        allow: tensors of the model that may be missing or be left over; None: none.

    Returns:
        The training state of the checkpoint; what was not asked for is as in a fresh one.

    Raises:
        CheckpointError: it does not fit the model, "model" is not asked for, "optimizer" is for a model with parameters
            that are missing there, or the store does not answer.
        DamagedError: a file is not as it was written; model and optimizer may be half filled by then.
    """
    content = {"model", "sampler", "optimizer", "scheduler"} if "all" in content else set(content)
    if "model" not in content:
        raise CheckpointError(
            f"content {sorted(content)} without model: nothing to go on from",
            key="ckpt.load_ckpt_info.content",
            hint='add "model", or write "all"',
        )
    from evo_core.checkpoint.stored import Reader

    saved, state, manifest = TrainState.read(folder), TrainState(), read_manifest(folder)
    weights = Reader(below(folder, MODEL), manifest.records_of(MODEL))
    difference = check_model(weights, model, allow)
    moments: int = 0
    states: Mapping[str, Placed] = {}
    if "optimizer" in content:
        _check_states(folder, model, difference.missing, content, allow)
        flat = manifest.format == 1
        stored = _stored_states(folder, manifest, allow)
        # A parameter that was as wide as its master value, or whose type is another now, has none there.
        names = stored.shapes()
        states = {n: t for n, t in optimizer.state().items() if not n.startswith(_MASTER) or n in names}
        check_rule(folder, names, states, allow)
        check_tensors(stored, states, flat=flat)  # nothing is changed where something does not fit
    read_model(weights, model, allow)
    if dist.get_rank() == 0:
        replace(difference, missing=tuple(unread(model, difference.missing))).tell(folder)
    take_ending(folder, model)
    if "optimizer" in content:
        read_tensors(stored, states, flat=flat)
        moments = saved.moments
        state.scaler = saved.scaler
        optimizer.scaler.load_state(saved.scaler)
    optimizer.restored(updates=moments, masters={n.removeprefix(_MASTER) for n in states if n.startswith(_MASTER)})
    if "scheduler" in content:
        state.updates = saved.updates
    if "sampler" in content:
        state.step, state.tokens, state.skipped_updates = saved.step, saved.tokens, saved.skipped_updates
        state.data_digest, state.loss = saved.data_digest, saved.loss
        state.batch_tokens, state.batch_growth = saved.batch_tokens, saved.batch_growth
        state.folder, state.seed, state.data_cursors = saved.folder, saved.seed, saved.data_cursors
    return state


def _check_states(
    folder: Location, model: nn.Module, missing: Collection[str], content: Collection[str], allow: Allow | None
) -> None:
    """Refuse to take states of an optimizer for parameters that are not in the checkpoint."""
    parameters = {name for name, _ in all_stages(model).named_parameters(remove_duplicate=False)}
    if new := [name for name in unread(model, missing) if name in parameters]:
        rest = [name for name in ("model", "sampler", "scheduler") if name in content]
        key, hint = content_to_state(rest, allow)
        message = f"lacks {listed(new)}: a tensor that is new here has no optimizer states there"
        raise CheckpointError(message, file=folder, key=key, hint=hint)


def take_ending(folder: Location, model: nn.Module) -> None:
    """Where a text ends goes with the weights; a registered model of another kind does not generate."""
    from evo_core.model import Decoder

    if isinstance(model, Decoder):
        model.ending = ending_of(generation_of(folder))


def _stored_states(folder: Location, manifest: Manifest, allow: Allow | None) -> Reader:
    """The states of the optimizer."""
    from evo_core.checkpoint.stored import Reader

    records = manifest.records_of(OPTIMIZER)
    if not records:
        key, hint = content_to_state(["model"], allow)
        raise CheckpointError("holds weights alone, no states of an optimizer", file=folder, key=key, hint=hint)
    return Reader(below(folder, OPTIMIZER), records)

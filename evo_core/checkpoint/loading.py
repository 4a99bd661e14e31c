"""Loading: check a checkpoint, then take from it what is asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import nn

from evo_core.checkpoint import folder as folders
from evo_core.checkpoint.allowed import Allow, listed
from evo_core.checkpoint.generation_settings import ending_of, generation_of
from evo_core.checkpoint.manifest import Manifest, check_files, damage, damaged, read_manifest
from evo_core.checkpoint.run import UNKNOWN, Run
from evo_core.checkpoint.tensors import (
    MODEL,
    OPTIMIZER,
    check_model,
    check_tensors,
    read_model,
    read_tensors,
    stored_shapes,
    unread,
)
from evo_core.checkpoint.train_state import TrainState
from evo_core.errors import CheckpointError
from evo_core.parallel.collectives import gather_objects, on_first
from evo_core.placement import Placed

if TYPE_CHECKING:
    from evo_core.optim.protocol import Optimizer

_MASTER = "master."

log = logging.getLogger(__name__)


def verify(folder: Path) -> Manifest:
    """Read a checkpoint through and compare it with its manifest, the files shared out over all ranks.

    Every rank must call it, and all come to the same result.

    Raises:
        CheckpointError: it is incomplete, or a file is missing or damaged.
    """
    manifest = on_first(lambda: _manifest_of_all(folder))
    names = sorted(manifest.files)
    own = damage(folder, manifest, names[dist.get_rank() :: dist.get_world_size()])
    problems = [problem for part in gather_objects(own) for problem in part]
    if problems:
        raise damaged(folder, problems)
    return manifest


def _manifest_of_all(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return manifest


def newest_sound(root: Path, run: Run | None = None) -> tuple[Path, Run] | None:
    """The newest undamaged checkpoint of a run; says why newer ones are passed over.

    Every rank must call it.

    Args:
        root: the save folder.
        run: default the one that saved last.

    Returns:
        Its folder, and the run with what was passed over; None where nothing was completed yet.

    Raises:
        CheckpointError: there are complete ones, and every one is damaged.
    """
    candidates = on_first(lambda: folders.complete_ones(root, run))
    problems: list[CheckpointError] = []
    for number, found in enumerate(candidates):
        try:
            verify(found.path)
        except CheckpointError as error:
            problems.append(error)
            if dist.get_rank() == 0 and number + 1 < len(candidates):
                log.warning("%s: falling back to the checkpoint before it", error)
            continue
        names = (f.name for f in candidates[:number])
        own = found.run or run or UNKNOWN
        return found.path, replace(own, passed_over=tuple(dict.fromkeys([*own.passed_over, *names])))
    if problems:
        raise CheckpointError(
            f"no checkpoint of the run is whole, of {len(problems)}; the newest: {problems[0]}",
            file=root,
            key="ckpt.save_ckpt_folder",
            hint="put back a whole copy of one; to start over, name another folder or set ckpt.auto_resume to false",
        )
    return None


def load(
    folder: Path,
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
        CheckpointError: it does not fit the model, "model" is not asked for, or "optimizer" is for a model with
            parameters that are missing there.
    """
    content = {"model", "sampler", "optimizer", "scheduler"} if "all" in content else set(content)
    if "model" not in content:
        raise CheckpointError(
            f"content {sorted(content)} without model: nothing to go on from",
            key="ckpt.load_ckpt_info.content",
            hint='add "model", or write "all"',
        )
    saved, state = TrainState.read(folder), TrainState()
    difference = check_model(folder / MODEL, model, allow)
    moments: int = 0
    states: Mapping[str, Placed] = {}
    if "optimizer" in content:
        _check_states(folder, model, difference.missing, content)
        flat = read_manifest(folder).format == 1
        states = _stored_states(folder / OPTIMIZER, optimizer)
        check_tensors(folder / OPTIMIZER, states, flat=flat)  # nothing is changed where something does not fit
    read_model(folder / MODEL, model, allow)
    if dist.get_rank() == 0:
        replace(difference, missing=tuple(unread(model, difference.missing))).tell(folder)
    take_ending(folder, model)
    if "optimizer" in content:
        read_tensors(folder / OPTIMIZER, states, flat=flat)
        moments = saved.moments
        state.scaler = saved.scaler
        optimizer.scaler.load_state(saved.scaler)
    optimizer.restored(updates=moments, masters={n.removeprefix(_MASTER) for n in states if n.startswith(_MASTER)})
    if "scheduler" in content:
        state.updates = saved.updates
    if "sampler" in content:
        state.step, state.tokens, state.skipped_updates = saved.step, saved.tokens, saved.skipped_updates
        state.data_digest, state.batch_tokens, state.loss = saved.data_digest, saved.batch_tokens, saved.loss
        state.folder, state.seed, state.data_cursors = saved.folder, saved.seed, saved.data_cursors
    return state


def _check_states(folder: Path, model: nn.Module, missing: Collection[str], content: Collection[str]) -> None:
    """Refuse to take states of an optimizer for parameters that are not in the checkpoint."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if new := [name for name in unread(model, missing) if name in parameters]:
        rest = [name for name in ("model", "sampler", "scheduler") if name in content]
        raise CheckpointError(
            f"lacks {listed(new)}: a tensor that is new here has no optimizer states there",
            file=folder,
            key="ckpt.load_ckpt_info.content",
            hint=f"write content: {json.dumps(rest)}",
        )


def take_ending(folder: Path, model: nn.Module) -> None:
    """Where a text ends goes with the weights; a registered model of another kind does not generate."""
    from evo_core.model import Decoder

    if isinstance(model, Decoder):
        model.ending = ending_of(generation_of(folder))


def _stored_states(folder: Path, optimizer: Optimizer) -> dict[str, Placed]:
    """What is to be read of an optimizer's states: the moments, and master values where both sides have them."""
    if not folder.is_dir():
        raise CheckpointError(
            "holds weights alone, no states of an optimizer",
            file=folder.parent,
            key="ckpt.load_ckpt_info.content",
            hint='write content: ["model"]',
        )
    stored = stored_shapes(folder)
    # A parameter that was as wide as its master value, or whose type is another now, has none there.
    return {n: t for n, t in optimizer.state().items() if not n.startswith(_MASTER) or n in stored}

"""Saving: all ranks write into a new folder, and rank 0 completes it with a manifest.

Where that fails (a full disk, a limit, a folder that is gone) every rank is told why in one sentence; the unfinished
folder is removed, for it takes up room.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from evo_core.checkpoint import folder as folders
from evo_core.checkpoint.agreement import check_agreement
from evo_core.checkpoint.generation_settings import as_eos_token_id, write_generation
from evo_core.checkpoint.manifest import CONFIG, TOKENIZER, FileRecord, Manifest, file_record, write_manifest
from evo_core.checkpoint.run import UNKNOWN, Run
from evo_core.checkpoint.staging import Staged, stage
from evo_core.checkpoint.tensors import MODEL, OPTIMIZER, model_tensors, write_parts
from evo_core.checkpoint.train_state import TrainState
from evo_core.config import local_path, save_config
from evo_core.data.tokenize.tokenizers import load_tokenizer
from evo_core.errors import CheckpointError
from evo_core.parallel.collectives import RankFailed, failing_together, gather_objects, on_first
from evo_core.placement import Placed
from evo_core.storage.atomic import sync, sync_tree
from evo_core.storage.local import try_writing
from evo_core.storage.location import is_hub_id, is_remote

if TYPE_CHECKING:
    from evo_core.checkpoint.about import About
    from evo_core.checkpoint.parts import Parts
    from evo_core.config import TrainConfig
    from evo_core.config.schema.ckpt import CkptConfig

_PROBE_BYTES = 1 << 20

T = TypeVar("T")

log = logging.getLogger(__name__)


def save(
    root: Path,
    cfg: TrainConfig,
    model: nn.Module,
    optimizer_state: Mapping[str, Placed],
    state: TrainState,
    *,
    snapshot: bool = False,
    run: Run = UNKNOWN,
) -> Path:
    """Write a checkpoint and remove those of the run that are too old; every rank must call it.

    Args:
        root: the save folder.
        model: its weights are written once, shared out over the ranks.
        optimizer_state: as `Optimizer.state` gives it.
        state: where the run is.
        snapshot: write it among the snapshots, of which the newest two are kept.
        run: whose it is.

    Returns:
        The folder, complete.

    Raises:
        CheckpointError: it cannot be written, or ranks have different values of one tensor; on every rank.
        UserError: the tokenizer that goes with the weights cannot be read any more; on every rank.
        RankFailed: a rank met an error that is no user's mistake; on every rank.
    """
    staged = stage(tensors_of(model, optimizer_state))
    return write(root, cfg, staged, state, ending=ending_ids_of(model), snapshot=snapshot, run=run)


def tensors_of(model: nn.Module, optimizer_state: Mapping[str, Placed]) -> dict[str, Mapping[str, Placed]]:
    """The tensors of a checkpoint, by its part and name."""
    return {MODEL: model_tensors(model), OPTIMIZER: optimizer_state}


def ending_ids_of(model: nn.Module) -> tuple[int, ...]:
    """The ids that end a text, which go with the weights."""
    return tuple(sorted(getattr(model, "ending", ())))


def write(
    root: Path,
    cfg: TrainConfig,
    staged: Staged,
    state: TrainState,
    *,
    ending: Sequence[int] = (),
    snapshot: bool = False,
    run: Run = UNKNOWN,
    about: About | None = None,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write a checkpoint of what was staged; see `save`. Every rank must call it, in any thread of its own.

    Args:
        ending: ids that end a text.
        about: what it is made by and from; the first rank's is kept.
        group: all ranks, in their order, for nothing else in this time; None is the default group.
    """
    check_agreement(staged.described, group)
    folder = on_first(lambda: folders.create(root, state.step, run, snapshot=snapshot), group)
    try:
        _fill(folder, cfg, staged, state, ending, about, group)
    except Exception:
        if dist.get_rank() == 0:
            with suppress(OSError):  # the reason is the error that is raised
                folders.remove(folder)
        raise
    on_first(lambda: _remove_old(root, cfg.ckpt, run), group)
    return folder


def _remove_old(root: Path, ckpt: CkptConfig, run: Run) -> None:
    """Remove what is too old; what cannot be is no reason to end a run whose checkpoint is complete."""
    try:
        folders.remove_old(root, ckpt.keep, run, keep_every=ckpt.kept_for_ever)
    except (OSError, CheckpointError) as error:
        log.warning("older checkpoints stay in %s: %s", root, error)


def _fill(
    folder: Path,
    cfg: TrainConfig,
    staged: Staged,
    state: TrainState,
    ending: Sequence[int],
    about: About | None,
    group: dist.ProcessGroup | None,
) -> None:
    """Write all files of a checkpoint, the manifest last."""
    for part, named in staged.parts.items():
        _write_tensors(folder, part, named, group)

    def shared() -> str | None:
        save_config(_portable(cfg), folder / CONFIG)
        state.write(folder)
        write_generation(folder, as_eos_token_id(list(ending)))
        return _copy_tokenizer(cfg, folder)

    tokenizer = on_first(lambda: _written(folder, shared), group)
    files: dict[str, FileRecord] = {}
    with failing_together(group):
        own = _written(folder, lambda: _own_records(folder))
    for records in gather_objects(own, group):
        files.update(records)
    written_by = {"ranks": dist.get_world_size(), "torch": torch.__version__}
    manifest = Manifest(state.step, state.tokens, state.data_digest, files, tokenizer, written_by, about)
    on_first(lambda: _written(folder, lambda: _complete(folder, manifest)), group)


def _complete(folder: Path, manifest: Manifest) -> None:
    """Write the manifest once all it vouches for is on the disk: torch syncs files of tensors, not their names."""
    sync_tree(folder)
    sync(folder.parent)
    write_manifest(folder, manifest)


def _written(folder: Path, write: Callable[[], T]) -> T:
    """Call a function that writes into the folder; what the file system refuses becomes one sentence.

    Raises:
        CheckpointError: it refused.
    """
    try:
        return write()
    except OSError as error:
        raise CheckpointError(_cannot(error.strerror or str(error)), file=folder) from error


def _write_tensors(folder: Path, part: str, tensors: Mapping[str, Parts], group: dist.ProcessGroup | None) -> None:
    """Write tensors into a part of the checkpoint, from all ranks; where one of them fails, all are told the same.

    Raises:
        CheckpointError: the file system refused.
        RankFailed: something else went wrong on a rank.
    """
    from torch.distributed.checkpoint import CheckpointException

    try:
        write_parts(folder / part, tensors, group)
    except CheckpointException as error:  # on every rank
        failures = [failure for failure, _ in error.failures.values()]
        reason = on_first(lambda: _refusal(folder, failures), group)
        if reason is None:
            rank, (failure, _) = next(iter(error.failures.items()))
            raise RankFailed(f"rank {rank}: {type(failure).__name__}: {failure}") from error
        raise CheckpointError(_cannot(reason), file=folder) from error


def _cannot(reason: str) -> str:
    return f"no checkpoint can be saved: {reason}"


def _refusal(folder: Path, failures: Sequence[BaseException]) -> str | None:
    """Why the file system refused, in its words; None where it did not.

    A tensor is written by torch's own archive writer, which says "unexpected pos 704 vs 598" of a full disk. So where
    no rank's failure names the reason, writing a little tells it.
    """
    for failure in failures:
        if isinstance(failure, OSError):
            return failure.strerror or str(failure)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY:
        return f"a file may have {limit} bytes here (ulimit -f)"
    try:
        try_writing(folder, _PROBE_BYTES)
    except OSError as refused:
        return refused.strerror or str(refused)
    return None


def _portable(cfg: TrainConfig) -> TrainConfig:
    """The configuration with paths that mean the same from any working folder; relative ones look like hub ids."""
    updates: dict[str, Any] = {}
    if cfg.data.tokenizer_path is not None and not is_hub_id(cfg.data.tokenizer_path):
        path = str(local_path(cfg.data.tokenizer_path).absolute())
        updates["data"] = cfg.data.model_copy(update={"tokenizer_path": path})
    if (info := cfg.ckpt.load_ckpt_info) is not None and not (is_hub_id(info.path) or is_remote(info.path)):
        info = info.model_copy(update={"path": str(local_path(info.path).absolute())})
        updates["ckpt"] = cfg.ckpt.model_copy(update={"load_ckpt_info": info})
    return cfg.model_copy(update=updates)


def _copy_tokenizer(cfg: TrainConfig, folder: Path) -> str | None:
    """Keep the tokenizer with the weights: one is of no use without the other."""
    if cfg.data.tokenizer_path is None:
        return None
    (folder / TOKENIZER).mkdir()
    load_tokenizer(cfg.data.tokenizer_path).copy_to(folder / TOKENIZER)
    return TOKENIZER


def _own_records(folder: Path) -> dict[str, FileRecord]:
    """Records of the files that this rank wrote: each digests its own, rank 0 also what is everybody's."""
    rank = dist.get_rank()
    own = [path for part in (MODEL, OPTIMIZER) for path in (folder / part).glob(f"__{rank}_*")]
    if rank == 0:
        shared = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("__"))
        own += list(shared)
    return {str(path.relative_to(folder)): file_record(path) for path in own}

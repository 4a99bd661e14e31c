"""Saving: all ranks write into a new folder, and rank 0 completes it with a manifest.

Where that fails (a full disk, a limit, a folder that is gone, a store that does not answer) every rank is told why in
one sentence. The unfinished folder takes up room: on disk it is removed at once, in a store by a later save.
"""

from __future__ import annotations

import errno
import logging
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from evo_core.checkpoint import folder as folders
from evo_core.checkpoint import run as runs
from evo_core.checkpoint.agreement import check_agreement
from evo_core.checkpoint.generation_settings import as_eos_token_id, write_generation
from evo_core.checkpoint.manifest import CONFIG, TOKENIZER, Manifest, write_manifest
from evo_core.checkpoint.records import FileRecord, content_record, file_record
from evo_core.checkpoint.run import UNKNOWN, Run
from evo_core.checkpoint.scratch import scratch_folder
from evo_core.checkpoint.soundness import wrong_sizes
from evo_core.checkpoint.staging import Staged, stage
from evo_core.checkpoint.tensors import MODEL, OPTIMIZER, Records, model_tensors, write_parts
from evo_core.checkpoint.train_state import TrainState
from evo_core.config import local_path, save_config
from evo_core.data.tokenize.tokenizers import load_tokenizer
from evo_core.errors import CheckpointError, UserError
from evo_core.parallel.collectives import failing_together, gather_objects, on_first
from evo_core.placement import Placed
from evo_core.storage.atomic import sync, sync_tree
from evo_core.storage.files import below, file_sizes, link_tree, read_if_there, write_hint
from evo_core.storage.local import try_writing
from evo_core.storage.location import Location, is_hub_id, is_remote

if TYPE_CHECKING:
    from evo_core.checkpoint.about import About
    from evo_core.checkpoint.parts import Parts
    from evo_core.config import TrainConfig
    from evo_core.config.schema.ckpt import CkptConfig

_PROBE_BYTES = 1 << 20
_PARTS = (f"{MODEL}/", f"{OPTIMIZER}/")

T = TypeVar("T")

log = logging.getLogger(__name__)


def save(
    root: Location,
    cfg: TrainConfig,
    model: nn.Module,
    optimizer_state: Mapping[str, Placed],
    state: TrainState,
    *,
    snapshot: bool = False,
    run: Run = UNKNOWN,
) -> Location:
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
    root: Location,
    cfg: TrainConfig,
    staged: Staged,
    state: TrainState,
    *,
    ending: Sequence[int] = (),
    snapshot: bool = False,
    run: Run = UNKNOWN,
    about: About | None = None,
    group: dist.ProcessGroup | None = None,
    by_way_of: Path | None = None,
) -> Location:
    """Write a checkpoint of what was staged; see `save`. Every rank must call it, in any thread of its own.

    Args:
        ending: ids that end a text.
        about: what it is made by and from; the first rank's is kept.
        group: all ranks, in their order, for nothing else in this time; None is the default group.
        by_way_of: a folder of this machine where files of tensors are written before they go to a store.
    """
    check_agreement(staged.described, group)
    folder = on_first(lambda: folders.create(root, state.step, run, snapshot=snapshot), group)
    try:
        _fill(folder, cfg, staged, state, ending, about, group, by_way_of)
    except Exception:
        if dist.get_rank() == 0 and not is_remote(folder):
            with suppress(OSError):  # the reason is the error that is raised
                folders.remove(folder)
        raise
    on_first(lambda: _remove_old(root, cfg.ckpt, run), group)
    return folder


def _remove_old(root: Location, ckpt: CkptConfig, run: Run) -> None:
    """Remove what is too old; what cannot be is no reason to end a run whose checkpoint is complete."""
    try:
        folders.remove_old(root, ckpt.keep, run, keep_every=ckpt.kept_for_ever)
    except (OSError, UserError) as error:
        log.warning("older checkpoints stay in %s: %s", root, error)


def _fill(
    folder: Location,
    cfg: TrainConfig,
    staged: Staged,
    state: TrainState,
    ending: Sequence[int],
    about: About | None,
    group: dist.ProcessGroup | None,
    by_way_of: Path | None,
) -> None:
    """Write all files of a checkpoint, the manifest last."""
    own: dict[str, FileRecord] = {}
    for part, named in staged.parts.items():
        records = _write_tensors(folder, part, named, group, by_way_of)
        own |= {f"{part}/{name}": record for name, record in records.items()}

    def shared() -> tuple[dict[str, FileRecord], str | None]:
        with _small_files(folder) as draft:
            save_config(_portable(cfg), draft / CONFIG)
            state.write(draft)
            write_generation(draft, as_eos_token_id(list(ending)))
            tokenizer = _copy_tokenizer(cfg, draft)
            return _records_of(draft), tokenizer

    small, tokenizer = on_first(lambda: _written(folder, shared), group)
    files = small | _records_of_all(own, group)
    written_by = {"ranks": dist.get_world_size(), "torch": torch.__version__}
    manifest = Manifest(state.step, state.tokens, state.data_digest, files, tokenizer, written_by, about)
    on_first(lambda: _written(folder, lambda: _complete(folder, manifest)), group)


@contextmanager
def _small_files(folder: Location) -> Iterator[Path]:
    """Where rank 0 writes the small files of a checkpoint: in its folder, or on the way to a store.

    Raises:
        CheckpointError: there is no room on the way.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with ExitStack() as kept:
        try:
            draft = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="evo-")))
            yield draft
        except OSError as error:
            hint = "these small files go by way of TMPDIR: name a folder with room there"
            message = _cannot(error.strerror or str(error))
            raise CheckpointError(message, file=tempfile.tempdir or folder, hint=hint) from error
        link_tree(draft, folder)


def _records_of(draft: Path) -> dict[str, FileRecord]:
    """Records of the small files."""
    paths = [path for path in draft.rglob("*") if path.is_file()]
    names = {path.relative_to(draft).as_posix(): path for path in paths}
    return {name: file_record(path) for name, path in names.items() if not name.startswith(_PARTS)}


def _records_of_all(own: Mapping[str, FileRecord], group: dist.ProcessGroup | None) -> dict[str, FileRecord]:
    """The records of the files that all ranks wrote."""
    return {name: record for records in gather_objects(own, group) for name, record in records.items()}


def _complete(folder: Location, manifest: Manifest) -> None:
    """Write the manifest once all that it vouches for is there, and on the disk: torch syncs no names.

    Raises:
        CheckpointError: something is not there any more.
    """
    run = read_if_there(below(folder, runs.FILE))
    manifest.files[runs.FILE] = content_record(run or b"")
    problems = wrong_sizes(manifest.files, file_sizes(folder))
    if run is None or problems:
        what = problems[0] if problems else f"{runs.FILE} is missing"
        raise CheckpointError(_cannot(f"{what}; was something removed while it was being written?"), file=folder)
    if isinstance(folder, Path):
        sync_tree(folder)
        sync(folder.parent)
    write_manifest(folder, manifest)


def _written(folder: Location, write: Callable[[], T]) -> T:
    """Call a function that writes into the folder; what the file system or the store refuses becomes one sentence.

    Raises:
        CheckpointError: it refused.
    """
    try:
        return write()
    except OSError as error:
        message = _cannot(error.strerror or str(error))
        raise CheckpointError(message, file=folder, hint=write_hint(folder, error)) from error


def _write_tensors(
    folder: Location, part: str, tensors: Mapping[str, Parts], group: dist.ProcessGroup | None, by_way_of: Path | None
) -> Records:
    """Write tensors into a part of the checkpoint, from all ranks; where one of them fails, all are told the same.

    Returns:
        The records of the files that this rank wrote, by name.

    Raises:
        CheckpointError: they cannot be written.
    """
    if by_way_of is None:
        return _write_into(folder, part, tensors, group, reported=folder)
    with scratch_folder(by_way_of, group) as scratch:
        records = _write_into(scratch, part, tensors, group, reported=by_way_of)
        with failing_together(group):
            _written(folder, lambda: link_tree(scratch / part, below(folder, part)))
    return records


def _write_into(
    folder: Location, part: str, tensors: Mapping[str, Parts], group: dist.ProcessGroup | None, *, reported: Location
) -> Records:
    from torch.distributed.checkpoint import CheckpointException

    try:
        return write_parts(below(folder, part), tensors, group)
    except CheckpointException as error:  # on every rank
        failures = [failure for failure, _ in error.failures.values()]
        raise on_first(lambda: _refusal(folder, failures, reported), group) from error


def _cannot(reason: str) -> str:
    return f"no checkpoint can be saved: {reason}"


def _refusal(folder: Location, failures: Sequence[BaseException], reported: Location) -> UserError:
    """Why tensors cannot be written, in the words of the file system or the store.

    A tensor is written by torch's own archive writer, which says "unexpected pos 704 vs 598" of a full disk. So where
    no rank's failure names the reason, writing a little tells it.
    """
    for failure in failures:
        if isinstance(failure, UserError):
            return failure
        if isinstance(failure, OSError) and failure.errno != errno.EFBIG:
            hint = write_hint(folder, failure)
            return CheckpointError(_cannot(failure.strerror or str(failure)), file=reported, hint=hint)
    first = failures[0] if failures else None
    reason = (str(first).strip() or type(first).__name__).splitlines()[0]
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY:
        reason = f"a file may have {limit} bytes here (ulimit -f)"
    elif isinstance(folder, Path):
        try:
            try_writing(folder, _PROBE_BYTES)
        except OSError as refused:
            reason = refused.strerror or str(refused)
    return CheckpointError(_cannot(reason), file=reported)


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

"""Saving: all ranks write into a new folder, and rank 0 completes it with a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from evo_core.checkpoint import folder as folders
from evo_core.checkpoint.generation_settings import as_eos_token_id, write_generation
from evo_core.checkpoint.manifest import FileRecord, Manifest, file_record, write_manifest
from evo_core.checkpoint.tensors import MODEL, OPTIMIZER, model_tensors, write_tensors
from evo_core.checkpoint.train_state import TrainState
from evo_core.config import local_path, save_config
from evo_core.data.tokenizers import load_tokenizer
from evo_core.parallel.collectives import gather_objects, on_first
from evo_core.storage.location import is_hub_id

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

CONFIG = "config.yaml"
TOKENIZER = "tokenizer"


def save(
    root: Path,
    cfg: TrainConfig,
    model: nn.Module,
    optimizer_state: Mapping[str, torch.Tensor],
    state: TrainState,
    *,
    snapshot: bool = False,
) -> Path:
    """Write a checkpoint and remove those that are too old; every rank must call it.

    Args:
        root: the save folder.
        model: its weights are written once, shared out over the ranks.
        optimizer_state: as `HybridZeroOptimizer.state` gives it.
        state: where the run is.
        snapshot: write it among the snapshots, of which the newest two are kept.

    Returns:
        The folder, complete.
    """
    first = dist.get_rank() == 0
    folder = on_first(lambda: folders.create(root, state.step, snapshot=snapshot))
    write_tensors(folder / MODEL, model_tensors(model))
    write_tensors(folder / OPTIMIZER, optimizer_state)
    tokenizer = None
    if first:
        save_config(_portable(cfg), folder / CONFIG)
        state.write(folder)
        write_generation(folder, as_eos_token_id(sorted(getattr(model, "ending", ()))))
        tokenizer = _copy_tokenizer(cfg, folder)
    files: dict[str, FileRecord] = {}
    for records in gather_objects(_own_records(folder)):  # a barrier too: everything is on disk after it
        files.update(records)
    if first:
        written_by = {"ranks": dist.get_world_size(), "torch": torch.__version__}
        write_manifest(
            folder,
            Manifest(state.step, state.tokens, state.data_digest, files, tokenizer, written_by),
        )
        folders.remove_old(root, cfg.ckpt.keep)
    dist.barrier()  # a checkpoint that `save` has returned is complete for every rank
    return folder


def _portable(cfg: TrainConfig) -> TrainConfig:
    """The configuration with paths that mean the same from any working folder; relative ones look like hub ids."""
    updates: dict[str, Any] = {}
    if cfg.data.tokenizer_path is not None and not is_hub_id(cfg.data.tokenizer_path):
        path = str(local_path(cfg.data.tokenizer_path).absolute())
        updates["data"] = cfg.data.model_copy(update={"tokenizer_path": path})
    if (info := cfg.ckpt.load_ckpt_info) is not None and not is_hub_id(info.path):
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

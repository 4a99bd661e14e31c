"""Our own checkpoints as a format among the others: their weights, without the state of a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evo_core.checkpoint.folder import MANIFEST
from evo_core.checkpoint.generation_settings import generation_of, write_generation
from evo_core.checkpoint.inside import inside
from evo_core.checkpoint.manifest import (
    CONFIG,
    TOKENIZER,
    Manifest,
    read_manifest,
    write_manifest,
)
from evo_core.checkpoint.records import FileRecord, file_record
from evo_core.checkpoint.saved_config import saved_config
from evo_core.checkpoint.soundness import check_weights
from evo_core.checkpoint.tensors import MODEL, read_tensors
from evo_core.checkpoint.train_state import TrainState
from evo_core.config import save_config
from evo_core.config.families import SHIPPED
from evo_core.placement import Piece, Placed, Placement, Rectangle
from evo_core.weights.lazy import Lazy
from evo_core.weights.plain import PlainForm
from evo_core.weights.plausible import check_sizes
from evo_core.weights.source import Weights
from evo_core.weights.tokenizer_files import copy_tokenizer


def open_evo(folder: Path, *, check: bool = True) -> Weights:
    """The weights of a complete checkpoint folder.

    Args:
        check: compare small files with their digests; those of tensors are, part by part, while they are read.

    Raises:
        CheckpointError: it is incomplete or damaged.
    """
    manifest = check_weights(folder) if check else read_manifest(folder)
    cfg = saved_config(folder)
    tokenizer = tokenizer_of(folder, manifest)
    stored = _stored(folder / MODEL, manifest)
    if cfg.model_type in SHIPPED:
        check_sizes(cfg.model, [tensor.shape for tensor in stored.values()], folder / CONFIG)
    plain = PlainForm(cfg.model).to_plain(stored)
    return Weights(
        folder,
        "evo",
        cfg,
        plain,
        tokenizer,
        manifest.step,
        manifest.tokens,
        generation_of(folder),
        trained_here=manifest.trained_here,
    )


def tokenizer_of(folder: Path, manifest: Manifest) -> Path | None:
    """Where the tokenizer of a checkpoint lies, if it has one.

    Raises:
        CheckpointError: it is said to lie elsewhere.
    """
    return inside(folder, manifest.tokenizer, file=folder / MANIFEST) if manifest.tokenizer else None


def write_evo(weights: Weights, folder: Path) -> None:
    """Write a checkpoint that holds weights alone: a run can start from it, but not go on.

    Args:
        folder: an empty one.
    """
    own = PlainForm(weights.model).from_plain(weights.tensors)
    records = _store(folder / MODEL, own)
    save_config(weights.config, folder / CONFIG)
    write_generation(folder, weights.generation)
    TrainState(step=0).write(folder)
    tokenizer = None
    if weights.tokenizer is not None:
        copy_tokenizer(weights.tokenizer, folder / TOKENIZER)
        tokenizer = TOKENIZER
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files = {f"{MODEL}/{name}": record for name, record in records.items()}
    files |= {name: file_record(path) for name, path in paths.items() if name not in files}
    written_by = {"converted_from": weights.kind, "torch": torch.__version__}
    write_manifest(folder, Manifest(weights.step, weights.tokens, "", files, tokenizer, written_by))


def _stored(folder: Path, manifest: Manifest) -> dict[str, Lazy]:
    """The tensors of a `torch.distributed.checkpoint`, each read alone."""
    from evo_core.checkpoint.stored import Reader

    reader = Reader(folder, manifest.records_of(MODEL))

    def lazy(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Lazy:
        def read(where: Rectangle) -> Tensor:
            tensor = torch.empty(where.sizes, dtype=dtype)
            piece = Piece(where, (0,) * len(shape), (0,))
            read_tensors(reader, {name: Placed(tensor, Placement(shape, where.sizes, (piece,)))})
            return tensor

        return Lazy(shape, dtype, read)

    return {name: lazy(name, tuple(e.size), e.properties.dtype) for name, e in reader.tensors().items()}


def _store(folder: Path, tensors: Mapping[str, Lazy]) -> dict[str, FileRecord]:
    """Write a `torch.distributed.checkpoint` with one tensor in memory at a time: each is made when its turn comes.

    Returns:
        The records of its files, by name.
    """
    import torch.distributed.checkpoint as dcp

    from evo_core.checkpoint.tensor_files import Writer

    class OneByOne(dcp.DefaultSavePlanner):
        def lookup_object(self, index: Any) -> Any:
            return tensors[index.fqn].read()

    places = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}
    writer = Writer(folder, sum(place.nbytes for place in places.values()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            dcp.save(places, storage_writer=writer, planner=OneByOne(), no_dist=True)
        except dcp.CheckpointException as error:  # what really happened, Ctrl-C included
            raise next(iter(error.failures.values()))[0] from None
    return writer.records

"""A model ready to run, from weights of any format; and what a folder of weights says of itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evo_core.checkpoint.finite import check_finite, check_model_finite
from evo_core.checkpoint.folder import MANIFEST
from evo_core.checkpoint.loading import take_ending
from evo_core.checkpoint.manifest import CONFIG, read_manifest
from evo_core.checkpoint.saved_config import saved_config
from evo_core.checkpoint.soundness import check_weights
from evo_core.checkpoint.tensors import MODEL, check_model, read_model
from evo_core.config.families import SHIPPED
from evo_core.parallel.collectives import on_first
from evo_core.storage.location import is_remote
from evo_core.weights import fill_model, open_weights
from evo_core.weights.evo import tokenizer_of
from evo_core.weights.in_store import folder_in_store
from evo_core.weights.plausible import check_sizes
from evo_core.weights.recognise import locate

if TYPE_CHECKING:
    from evo_core.config import ModelConfig, TrainConfig
    from evo_core.data.tokenize.tokenizers import Tokenizer
    from evo_core.parallel.mesh import Mesh


def resolve(uri: str | Path) -> Path:
    """The folder of weights that a path or a hub id means: of our own checkpoints the newest complete one.

    Raises:
        CheckpointError: there is none.
    """
    return locate(uri)[1]


def resolve_everywhere(uri: str | Path) -> Path:
    """`resolve`, chosen by one rank for all; every rank must call it.

    What comes from a hub or an object store is copied to each node by itself.
    """
    if is_remote(uri):
        chosen = on_first(lambda: folder_in_store(str(uri)))
        return resolve(chosen)
    folder = on_first(lambda: resolve(uri))
    return folder if folder.is_dir() else resolve(uri)


def read_config(uri: str | Path) -> TrainConfig:
    """The configuration of the run that wrote a checkpoint; `uri` as for `load_model`.

    Of weights in another system's format it is one whose `model` block describes them, the rest as by default.
    """
    kind, folder = locate(uri)
    return saved_config(folder) if kind == "evo" else open_weights(folder).config


def trained_for(folder: Path) -> tuple[int, int]:
    """Steps and training tokens behind a folder of weights; zeros for another system's, which does not say."""
    if not (folder / MANIFEST).is_file():
        return 0, 0
    manifest = read_manifest(folder)
    return manifest.step, manifest.tokens


def load_model(
    uri: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    mesh: Mesh | None = None,
    check: bool = True,
    allow_non_finite: bool = True,
) -> tuple[nn.Module, Tokenizer | None]:
    """The model in a checkpoint, ready to run, and its tokenizer.

    Any process may call it alone. With a mesh of several tensor ranks or stages every rank of the mesh calls it, and
    has memory for its part of the model and reads no more than that.

    Args:
        uri: a checkpoint folder, or a folder that holds checkpoints (then the newest complete one); with or without
            ``local:``. A folder of Hugging Face's, Meta's or InternEvo's form, or a hub id, works alike.
        device: where to put it.
        dtype: type of the weights; default that of the training run.
        mesh: ranks that share each layer, or have some of them (`evo_core.parallel.inference.inference_mesh`); None is
            a whole model.
        check: compare small files with their digests, and say which weights are NaN or infinite; one rank of a machine
            is enough. What is read of files of tensors is always compared with its digests.
        allow_non_finite: False refuses such weights.

    Returns:
        The model in evaluation mode, and the tokenizer, or None where there is none with the weights.

    Raises:
        CheckpointError: there is no complete checkpoint, or it is damaged.
    """
    from evo_core.model import build_model
    from evo_core.parallel.apply import build_parallel
    from evo_core.parallel.collectives import failing_together

    is_cut = mesh is not None and mesh.pipeline.size * mesh.tensor.size > 1
    # A rank that raised alone would leave the others waiting for it: making groups and counting takes all of them.
    together = failing_together if is_cut else nullcontext
    with together():
        found = _find(uri, check)
    if mesh is None:
        model: nn.Module = build_model(found.model, device=device, dtype=dtype)
    else:
        model = build_parallel(found.model, mesh, device, dtype=dtype)
    with together():
        found.fill(model)
    if is_cut:
        check_model_finite(model, found.folder, allowed=allow_non_finite)
    elif check or not allow_non_finite:
        check_finite(model.named_parameters(), found.folder, allowed=allow_non_finite)
    return model.eval(), found.tokenizer


@dataclass(frozen=True)
class _Found:
    """Weights that are not read yet.

    Attributes:
        model: the `model` block.
        fill: copies into a model of that block what belongs there.
    """

    folder: Path
    model: ModelConfig | Any
    tokenizer: Tokenizer | None
    fill: Callable[[nn.Module], object]


def _find(uri: str | Path, check: bool) -> _Found:
    """What a path means; nothing takes memory yet."""
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    kind, folder = locate(uri)
    if kind == "evo":
        return _own(folder, check)
    weights = open_weights(folder)
    tokenizer = load_tokenizer(weights.tokenizer) if weights.tokenizer else None
    return _Found(folder, weights.model, tokenizer, partial(fill_model, weights=weights))


def _own(folder: Path, check: bool) -> _Found:
    """A checkpoint of ours."""
    from evo_core.checkpoint.stored import Reader
    from evo_core.data.tokenize.tokenizers import load_tokenizer
    from evo_core.model import build_model

    manifest = check_weights(folder) if check else read_manifest(folder)
    stored = Reader(folder / MODEL, manifest.records_of(MODEL))
    cfg = saved_config(folder)
    if cfg.model_type in SHIPPED:  # what does not fit is told before it takes memory
        check_sizes(cfg.model, list(stored.shapes().values()), folder / CONFIG)
        check_model(stored, build_model(cfg.model, device="meta"))
    path = tokenizer_of(folder, manifest)
    tokenizer = load_tokenizer(path) if path else None
    if tokenizer is not None and manifest.trained_here:
        tokenizer.begin = None  # the begin id, as the documents that it was trained on

    def fill(model: nn.Module) -> None:
        read_model(stored, model)
        take_ending(folder, model)

    return _Found(folder, cfg.model, tokenizer, fill)

"""A model ready to run, from weights of any format; and what a folder of weights says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from evo_core.checkpoint.finite import check_finite
from evo_core.checkpoint.folder import MANIFEST
from evo_core.checkpoint.loading import take_ending
from evo_core.checkpoint.manifest import CONFIG, check_weights, read_manifest
from evo_core.checkpoint.saved_config import saved_config
from evo_core.checkpoint.tensors import MODEL, check_model, read_model, stored_shapes
from evo_core.config.families import SHIPPED
from evo_core.weights import build, open_weights
from evo_core.weights.evo import tokenizer_of
from evo_core.weights.plausible import check_sizes
from evo_core.weights.recognise import locate

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.data.tokenize.tokenizers import Tokenizer


def resolve(uri: str | Path) -> Path:
    """The folder of weights that a path or a hub id means: of our own checkpoints the newest complete one.

    Raises:
        CheckpointError: there is none.
    """
    return locate(uri)[1]


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
    check: bool = True,
    allow_non_finite: bool = True,
) -> tuple[nn.Module, Tokenizer | None]:
    """The model in a checkpoint, ready to run, and its tokenizer; any process may call it alone.

    Args:
        uri: a checkpoint folder, or a folder that holds checkpoints (then the newest complete one); with or without
            ``local:``. A folder of Hugging Face's, Meta's or InternEvo's form, or a hub id, works alike.
        device: where to put it.
        dtype: type of the weights; default that of the training run.
        check: compare the files that are read with their digests first, and say which weights are NaN or infinite.
        allow_non_finite: False refuses such weights.

    Returns:
        The model in evaluation mode, and the tokenizer, or None where there is none with the weights.

    Raises:
        CheckpointError: there is no complete checkpoint, or it is damaged.
    """
    model, tokenizer, folder = _read(uri, device, dtype, check)
    if check or not allow_non_finite:
        check_finite(model.named_parameters(), folder, allowed=allow_non_finite)
    return model.eval(), tokenizer


def _read(
    uri: str | Path, device: str | torch.device, dtype: torch.dtype | None, check: bool
) -> tuple[nn.Module, Tokenizer | None, Path]:
    """The model, its tokenizer and the folder of both."""
    from evo_core.data.tokenize.tokenizers import load_tokenizer
    from evo_core.model import build_model
    from evo_core.weights import locate, open_weights

    kind, folder = locate(uri)
    if kind != "evo":
        weights = open_weights(folder)
        found = load_tokenizer(weights.tokenizer) if weights.tokenizer else None
        return build(weights, device=device, dtype=dtype), found, folder
    manifest = check_weights(folder) if check else read_manifest(folder)
    cfg = read_config(folder)
    if cfg.model_type in SHIPPED:  # what does not fit is told before it takes memory
        check_sizes(cfg.model, list(stored_shapes(folder / MODEL).values()), folder / CONFIG)
        check_model(folder / MODEL, build_model(cfg.model, device="meta"))
    model = build_model(cfg.model, device=device, dtype=dtype)
    read_model(folder / MODEL, model)
    take_ending(folder, model)
    path = tokenizer_of(folder, manifest)
    tokenizer = load_tokenizer(path) if path else None
    if tokenizer is not None and manifest.trained_here:
        tokenizer.begin = None  # the begin id, as the documents that it was trained on
    return model, tokenizer, folder

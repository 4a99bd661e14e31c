"""A run that starts from weights of another run or system: whether they and its data speak of the same ids, what the
weights would compute otherwise, and where its schedule begins."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from evo_core.checkpoint.manifest import CONFIG, TOKENIZER
from evo_core.checkpoint.saved_config import saved_config
from evo_core.config.fields import is_set
from evo_core.config.schema.model import ModelConfig
from evo_core.data.tokenize.same_ids import disagreement
from evo_core.data.tokenize.tokenizers import load_tokenizer
from evo_core.errors import CheckpointError
from evo_core.storage.stage import stage
from evo_core.weights import other_settings
from evo_core.weights.tokenizer_files import find_tokenizer

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.train.start import Start

log = logging.getLogger(__name__)


def check_continuation(cfg: TrainConfig, start: Start) -> None:
    """Refuse weights that learned other ids than the data's, and say what goes on otherwise; one rank calls it.

    Raises:
        CheckpointError: the data's tokenizer (`data.tokenizer_path`) is another than that of the weights.
    """
    folder = stage(start.checkpoint, wanted=lambda path: path == CONFIG or path.startswith(f"{TOKENIZER}/"))
    _check_tokenizer(cfg, _tokenizer_of(folder, start))
    if start.kind == "evo":
        _say_other_settings(cfg, start, folder)
    if not start.goes_on:
        _say_schedule(cfg)


def _say_other_settings(cfg: TrainConfig, start: Start, folder: Path) -> None:
    """What our own weights would compute otherwise; of other systems' it is said where they are loaded."""
    try:
        there = saved_config(folder).model
    except CheckpointError as error:  # of another version, or of a model type that is not here: the tensors tell
        log.warning("the settings of these weights are not compared with this run's: %s", error)
        return
    if isinstance(there, ModelConfig) and isinstance(cfg.model, ModelConfig):
        for difference in other_settings(there, cfg.model):
            log.warning("%s: %s", start.checkpoint, difference)


def _tokenizer_of(folder: Path, start: Start) -> Path | None:
    if start.kind == "evo":
        return find_tokenizer(folder / TOKENIZER)
    return find_tokenizer(folder, folder.parent) if start.kind == "llama" else find_tokenizer(folder)


def _check_tokenizer(cfg: TrainConfig, of_weights: Path | None) -> None:
    if of_weights is None or cfg.data.tokenizer_path is None:
        return
    problem = disagreement(load_tokenizer(cfg.data.tokenizer_path), load_tokenizer(of_weights))
    if problem is not None:
        hint = "tokenize the data with that of the weights"
        raise CheckpointError(problem, key="data.tokenizer_path", hint=hint)


def _say_schedule(cfg: TrainConfig) -> None:
    rate = cfg.lr_scheduler
    stated = "" if is_set(cfg, "adam.lr") else " (adam.lr is not stated: this is its default)"
    log.info(
        "the weights alone are taken: the schedule starts anew, over %d steps: %d of warm-up to %g%s, then down to %g",
        rate.total_steps,
        rate.init_steps + rate.warmup_steps,
        cfg.adam.lr,
        stated,
        rate.eta_min,
    )

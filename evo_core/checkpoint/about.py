"""What a checkpoint was made by and from: code, configuration, data, layout, and what its last step measured.

It stands in the manifest, so that years later the code and the data behind weights can be found. Nothing in it is
needed to read the checkpoint, and nothing of it can end a run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import NoneType
from typing import TYPE_CHECKING, Any

from evo_core.code_version import evo_version, git_state
from evo_core.config.canonical_json import canonical_json
from evo_core.data.dataset.version import dataset_version
from evo_core.errors import ConfigError, UserError

if TYPE_CHECKING:
    from evo_core.config import TrainConfig


@dataclass(frozen=True)
class About:
    """What stands behind a checkpoint. Values that came from the environment are the references they were written as.

    Attributes:
        evo: version of Evo.
        commit: of the repository that it ran from; None where it is an installed package.
        modified: whether its files were not as the commit has them.
        identity_digest: sha256 of the identity settings as canonical JSON: of what decides the weights, wherever and on
            whatever ranks they are trained. None where one of these came from the environment.
        settings_digest: sha256 of the whole resolved configuration as YAML, with layout, folders and cadences.
        train_folder: ``data.train_folder`` as it was written; None for random data.
        dataset: version of the dataset (`evo_core.data.dataset.version`); None where it has none.
        no_dataset: why it has none.
        layout: ranks along each axis, and ``tensor_mode``; of a pipeline also ``pipeline_mode`` and ``num_chunks``, of
            a mixture of experts ``expert``, and ``fsdp``, the ranks that share parameters, where some do.
        metrics: of the last step, as its line in ``metrics.jsonl``: loss, gradient norm, learning rate, tokens a
            second, losses by type, and held-out scores where it was evaluated after it; None for what is not finite.
    """

    evo: str | None
    commit: str | None
    modified: bool | None
    identity_digest: str | None
    settings_digest: str
    train_folder: str | None
    dataset: str | None
    no_dataset: str | None
    layout: Mapping[str, int | str]
    metrics: Mapping[str, int | float | str | bool | None] = field(default_factory=dict)

    @classmethod
    def of(cls, cfg: TrainConfig, world_size: int) -> About:
        """What is the same for all checkpoints of a run; asks git and reads a file, so one rank does."""
        git = git_state()
        dataset, no_dataset = _dataset(cfg)
        return cls(
            evo=evo_version(),
            commit=None if git is None else git.commit,
            modified=None if git is None else git.modified,
            identity_digest=_identity_digest(cfg, world_size),
            settings_digest=_sha256(cfg.to_yaml()),
            train_folder=cfg.environment.get("data.train_folder", cfg.data.train_folder),
            dataset=dataset,
            no_dataset=no_dataset,
            layout=_layout(cfg, world_size),
        )

    def after(self, fields: Mapping[str, Any]) -> About:
        """The same with what the last step measured, as `StepRecord.fields` gives it."""
        return replace(self, metrics=finite(fields))

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> About:
        """From the plain data of a manifest.

        Raises:
            TypeError: it is none of an `About`.
        """
        for name, value in raw.items():
            if type(value) not in _TYPES[name]:
                raise TypeError(f"{name} cannot be {value!r:.40}")
        about = cls(**raw)
        for name, value in [*about.layout.items(), *about.metrics.items()]:
            if type(value) not in _PLAIN:
                raise TypeError(f"{name} cannot be {value!r:.40}")
        return about


_PLAIN = (int, float, str, bool, NoneType)
_TEXT = (str, NoneType)
_TYPES: dict[str, tuple[type, ...]] = {
    "evo": _TEXT,
    "commit": _TEXT,
    "modified": (bool, NoneType),
    "identity_digest": _TEXT,
    "settings_digest": (str,),
    "train_folder": _TEXT,
    "dataset": _TEXT,
    "no_dataset": _TEXT,
    "layout": (dict,),
    "metrics": (dict,),
}


def finite(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with None for numbers that are not finite, which JSON cannot say."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


def _layout(cfg: TrainConfig, world_size: int) -> dict[str, int | str]:
    pipeline = cfg.parallel.pipeline
    layout: dict[str, int | str] = {**asdict(cfg.degrees(world_size)), "tensor_mode": cfg.parallel.tensor.mode}
    if layout.pop("shards"):
        layout["fsdp"] = layout["zero1"]
    if cfg.experts == 1:
        del layout["expert"]
    if pipeline.size > 1:
        layout |= {"pipeline_mode": pipeline.mode, "num_chunks": cfg.model.num_chunks}
    return layout


def _identity_digest(cfg: TrainConfig, world_size: int) -> str | None:
    try:
        return _sha256(canonical_json(cfg.identity(world_size)))
    except (ConfigError, TypeError, ValueError):  # a secret may be in it, or a model's own kind of value
        return None


def _sha256(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _dataset(cfg: TrainConfig) -> tuple[str | None, str | None]:
    """The version of the dataset, or why there is none."""
    if cfg.data.train_folder is None:
        return None, "random data"
    if cfg.data.type == "hf":
        return None, "a Hugging Face data set names no version"
    try:
        return dataset_version(cfg.data.train_folder), None
    except (UserError, OSError):  # said without the error, which may hold what came from the environment
        return None, "no statistics.json of `evo data shard` can be read beside the folder"

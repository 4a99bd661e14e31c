"""Before any work: every rank was given the same job.

A file that differs from node to node, or another ``--set``, would train something that nobody asked for, or hang.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evo_core.config.addresses import NOT_SHOWN, may_hold_address
from evo_core.config.fields import leaves, value_at
from evo_core.config.identity import plain
from evo_core.config.secrets import Secrets
from evo_core.config.types import describe
from evo_core.errors import ConfigError
from evo_core.parallel.collectives import broadcast_object, gather_objects

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

_OF_A_NODE = ("data.train_folder", "data.valid_folder", "data.tokenizer_path", "data.shm_path")
"""What is only read, and may lie elsewhere on every node. Such a setting may come from the environment of each."""

_NAMED = 3
"""Values that a message shows, and settings beside the first that it names."""


class Setting(NamedTuple):
    """A setting as one rank has it.

    Attributes:
        digest: of its value, by which ranks compare theirs.
        shown: the value as a message may show it: where it came from the environment, the reference.
    """

    digest: str
    shown: str


def settings_of(cfg: TrainConfig) -> dict[str, Setting]:
    """Every setting of a job by its key, in the order of the schema."""
    secrets = Secrets(cfg.environment)
    found = {}
    for leaf in leaves(cfg):
        if leaf.mark != "copied":
            value = plain(value_at(cfg, leaf.key))
            shown = secrets.shown(value, leaf.key)
            told = secrets.references.get(leaf.key) or _told(leaf.key, shown)
            found[leaf.key] = Setting(_digest(shown if leaf.key in _OF_A_NODE else value), told)
    return found


def _told(key: str, value: Any) -> str:
    return NOT_SHOWN if value and may_hold_address(key) else describe(value)


def options_of(**options: Any) -> dict[str, Setting]:
    """Options of a command by their names there; those that were not given are None."""
    said = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return {f"--{name.replace('_', '-')}": Setting(_digest(value), describe(value)) for name, value in said.items()}


def check_one_job(said: Mapping[str, Setting]) -> None:
    """Compare what every rank of the default group was told; every rank must call it.

    Raises:
        ConfigError: they were told different things. It is the same on every rank: the first setting that differs, with
            its values and the ranks that have them.
    """
    if len(set(gather_objects(_digest(said)))) == 1:
        return
    first = broadcast_object(said)
    own = [key for key in first | said if first.get(key) != said.get(key)]
    differing = list(dict.fromkeys(key for keys in gather_objects(own) for key in keys))
    key, *others = differing
    message = _values(gather_objects(said.get(key)))
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        message += f"; {', '.join(others[:_NAMED])}{more} {'differ' if len(others) > 1 else 'differs'} too"
    raise ConfigError(message, key=key, hint="start every rank with the same file and the same options")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _values(by_rank: list[Setting | None]) -> str:
    """``0.0003 on rank 0, 0.001 on ranks 1-3``."""
    holders: dict[Setting | None, list[int]] = {}
    for rank, setting in enumerate(by_rank):
        holders.setdefault(setting, []).append(rank)
    if len({setting.shown if setting else None for setting in holders}) == 1:
        (shown, *_) = (setting.shown for setting in holders if setting)
        apart = ", another on ".join(map(ranks_in_words, list(holders.values())[:_NAMED]))
        return f"{shown} stands for {len(holders)} values: one on {apart}"
    told = [f"{s.shown if s else 'nothing'} on {ranks_in_words(ranks)}" for s, ranks in list(holders.items())[:_NAMED]]
    return f"is {', '.join(told)}{', ...' if len(holders) > _NAMED else ''}"


def ranks_in_words(ranks: list[int]) -> str:
    """``rank 0``, ``ranks 0-3, 8``."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    told = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs[:_NAMED]]
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(told)}{', ...' if len(runs) > _NAMED else ''}"

"""A configuration written out in full, to be read again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evo_core.config.addresses import concealed
from evo_core.config.fields import Leaf, is_set, leaves, value_at
from evo_core.config.identity import plain, put
from evo_core.config.references import as_literal
from evo_core.config.yaml_file import dump_yaml
from evo_core.storage.files import write_file
from evo_core.storage.location import Location

if TYPE_CHECKING:
    from evo_core.config.schema.train_config import TrainConfig


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """The configuration as the nested plain data of a YAML file that reads back to an equal one.

    Every identity setting is in it but those that came later and were not set, and every execution setting that was
    set. Values that came from the environment are the references they were written as. Addresses of web hooks that were
    written out are in it: it is for whoever carries the job out, and `to_yaml` for anybody else.
    """
    data: dict[str, Any] = {}
    environment = config.environment
    for leaf in leaves(config):
        value = value_at(config, leaf.key)
        if leaf.mark != "copied" and (is_set(config, leaf.key) or _is_always_written(leaf, value)):
            put(data, leaf.key, _written(plain(value), leaf.key, environment))
    return data


def _written(value: Any, key: str, environment: Mapping[str, str]) -> Any:
    """A value as it may be written: references where the environment gave it, or a part of it."""
    if key in environment:
        return environment[key]
    if isinstance(value, dict):
        return {name: _written(item, f"{key}.{name}", environment) for name, item in value.items()}
    if isinstance(value, list):
        return [_written(item, f"{key}.{index}", environment) for index, item in enumerate(value)]
    return as_literal(value)


def _is_always_written(leaf: Leaf, value: Any) -> bool:
    return leaf.mark == "identity" and value is not None and value != leaf.introduced


def to_yaml(config: TrainConfig) -> str:
    """``to_plain`` as YAML text that anybody may read: without the addresses of web hooks."""
    return dump_yaml(concealed(to_plain(config)))


def save_config(config: TrainConfig, path: Location) -> None:
    """Writes the configuration as a YAML file that anybody may read (`to_yaml`), all of it or nothing."""
    write_file(path, to_yaml(config))

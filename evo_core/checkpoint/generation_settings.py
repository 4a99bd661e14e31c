"""``generation_config.json``: how those who published weights generate with them; Evo reads where a text ends.

Chat models end an answer at another id than their tokenizer's end of text, often at one of several. Folders of every
format keep the file beside the weights, so that the ids go where the weights go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evo_core.checkpoint.json_file import read_json, write_json
from evo_core.checkpoint.manifest import TOKENIZER
from evo_core.errors import CheckpointError
from evo_core.storage.files import below, file_exists
from evo_core.storage.location import Location

FILE = "generation_config.json"
_CONFIG, _EOS = "config.json", "eos_token_id"


def read_generation(*folders: Location) -> dict[str, Any]:
    """The settings in the first of the folders that has any, with all ids that end a text as ``eos_token_id``.

    These are the ones that ``generation_config.json`` names and those of ``config.json``, in this order, always in a
    list. Empty where there is neither.

    Raises:
        CheckpointError: a file is damaged, or its ``eos_token_id`` is neither an id nor a list of ids.
    """
    for folder in folders:
        settings, ids = {}, list[int]()
        if file_exists(file := below(folder, FILE)):
            settings = read_json(file)
            ids = _ids(settings.pop(_EOS, None), file)
        if file_exists(file := below(folder, _CONFIG)):
            ids += _ids(read_json(file).get(_EOS), file)
        if ids:
            settings[_EOS] = list(dict.fromkeys(ids))
        if settings:
            return settings
    return {}


def generation_of(folder: Location) -> dict[str, Any]:
    """The settings in a checkpoint of ours; versions up to 1.0 kept them with the tokenizer."""
    return read_generation(folder, below(folder, TOKENIZER))


def ending_of(settings: Mapping[str, Any]) -> frozenset[int]:
    """The ids that end a text, of such settings."""
    return frozenset(settings.get(_EOS, ()))


def write_generation(folder: Path, settings: Mapping[str, Any]) -> None:
    """Put the settings beside weights; nothing where there are none."""
    if settings:
        write_json(folder / FILE, settings)


def as_eos_token_id(ids: Iterable[int]) -> dict[str, int | list[int]]:
    """The ids as such files name them: one by itself, several in a list."""
    ids = list(dict.fromkeys(ids))
    return {_EOS: ids[0] if len(ids) == 1 else ids} if ids else {}


def _ids(value: Any, file: Location) -> list[int]:
    """The ids in an ``eos_token_id``; some write -1 for none."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(not isinstance(token, int) or isinstance(token, bool) for token in ids):
        raise CheckpointError(f"{value!r} is neither a token id nor a list of them", file=file, key=_EOS)
    return [token for token in ids if token >= 0]

"""What is known of other systems' weights when a pipeline is planned: their network and their tokenizer.

Opening them imports torch, in seconds. So what was found is remembered by the digest of the files it was found in.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from evo_core.errors import ConfigError, UserError
from evo_core.storage.location import is_remote
from tasks.kind import Facts
from tasks.store.json_file import read_object, write_json

_FILE = "imported.json"
_VERSION = "1"
"""Raised when the same weights are known by other facts."""


class Imported(NamedTuple):
    """What is imported and as what; see `tasks.convert.ImportParams`."""

    source: str
    tokenizer: Path | None
    config: Path | None
    model_type: str | None
    dtype: str | None


def know(imported: Imported, digest: str, remember: Path) -> Facts:
    """The facts of a model that is to be imported.

    Args:
        digest: of all that it is made of.
        remember: a file of the store, beside which they are remembered.

    Returns:
        `network`, `vocab_size` and `tokenizer` (a path, or None where there is none). Nothing for weights in a store
        whose settings alone do not say them.

    Raises:
        ConfigError: no model can be made of the weights.
    """
    memory = remember.with_name(_FILE)
    known = read_object(memory) or {}
    key = f"{_VERSION}:{digest}"
    facts = known.get(key)
    if not isinstance(facts, dict) or not _is_there(facts):
        try:
            facts = _look(imported)
        except UserError as error:
            raise ConfigError(str(error), key="source") from error
        write_json(memory, known | {key: facts})
    return facts


def _is_there(facts: Facts) -> bool:
    """Whether the tokenizer lies where it was found: the same weights may have been somewhere else then."""
    tokenizer = facts.get("tokenizer")
    return tokenizer is None or Path(tokenizer).exists()


def _look(imported: Imported) -> Facts:
    from evo_core.config import load_config
    from evo_core.config.open_shape import network_of
    from evo_core.weights import described

    model = None if imported.config is None else load_config(imported.config).model
    found = described.in_store(imported.source) if is_remote(imported.source) else None
    if not is_remote(imported.source):
        found = described.on_disk(Path(imported.source), model)
    if found is None:
        return {} if imported.tokenizer is None else {"tokenizer": str(imported.tokenizer)}
    config = described.as_imported(found, imported.model_type, imported.dtype)
    tokenizer = imported.tokenizer or found.tokenizer
    network = network_of(config)
    return {
        "network": network,
        "vocab_size": network["model"]["vocab_size"],
        "tokenizer": None if tokenizer is None else str(tokenizer),
    }

"""Where prompts come from: a list, a text file, or token shards."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from evo_core.config import local_path
from evo_core.data.shards.format import BinReader
from evo_core.errors import ConfigError, DataError
from evo_core.storage.stage import stage


@dataclass(frozen=True)
class PromptSet:
    """Prompts that belong together; ``name`` is that of the token file their continuations go to, None for texts."""

    name: str | None
    prompts: list[str] | list[list[int]]


def read_prompts(prompts: str | list[str] | None, data_folder: str | None, ending: AbstractSet[int]) -> list[PromptSet]:
    """The prompts of a `generation` block: ``prompts`` where given, else the documents of ``data_folder``.

    Raises:
        ConfigError: neither is given.
        DataError: a file or folder is missing or holds no prompt.
    """
    if isinstance(prompts, list):
        return [PromptSet(None, prompts)]
    if prompts is not None:
        return [PromptSet(None, _lines(local_path(prompts)))]
    if data_folder is not None:
        return _token_sets(stage(data_folder), ending)
    raise ConfigError(
        "there is nothing to continue",
        key="generation.prompts",
        hint="give prompts, generation.data_folder or data.valid_folder",
    )


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, each a prompt."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError("there is no such file of prompts", file=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as UTF-8 text ({error})", file=path) from None
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise DataError("holds no prompt: one is expected per line", file=path)
    return [line.rstrip("\r") for line in lines]


def _token_sets(folder: Path, ending: AbstractSet[int]) -> list[PromptSet]:
    """The documents of each ``<type>/*.bin`` by type, and of each ``*.bin`` in the folder itself.

    A document's ending token is left out (behind it there is nothing to continue), and ids that are negative
    because they are not trained on are read as what they stand for.
    """
    if not folder.is_dir():
        raise DataError("there is no such folder of token files", file=folder)
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.bin")):
        files.setdefault(path.stem if path.parent == folder else path.parent.name, []).append(path)
    sets = []
    for name, paths in files.items():
        documents = [_document(reader, i, ending) for reader in map(BinReader, paths) for i in range(len(reader))]
        sets.append(PromptSet(name, [ids for ids in documents if ids]))
    if not any(part.prompts for part in sets):
        raise DataError("holds no tokenized prompt (*.bin with *.bin.meta)", file=folder)
    return sets


def _document(reader: BinReader, document: int, ending: AbstractSet[int]) -> list[int]:
    ids = [abs(token) for token in reader.tokens(document).tolist()]
    return ids[:-1] if ids and ids[-1] in ending else ids

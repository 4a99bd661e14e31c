"""The token files behind a path, and what was kept beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evo_core.data.shards.folder import SPLITS, files_below
from evo_core.data.shards.origins import Origins
from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer
from evo_core.errors import DataError

_UP = 4  # levels: type folder, train/, the dataset, what it was published in


@dataclass(frozen=True)
class ShardFile:
    """One ``.bin``.

    Attributes:
        path: where it is.
        split: ``train`` or ``valid`` where its folders say so, else empty.
        type: the data type, by its folder; empty for a single file.
    """

    path: Path
    split: str
    type: str

    @property
    def group(self) -> str:
        """Split and type, as a title."""
        return "/".join(filter(None, (self.split, self.type))) or self.path.name


def find_shards(path: Path) -> list[ShardFile]:
    """A ``.bin``, or all of them below a folder (types, or train/ and valid/ with types), sorted by split and path.

    Raises:
        DataError: there is none.
    """
    if path.is_file():
        if path.suffix != ".bin":
            raise DataError("not a token file", file=path, hint="give a .bin or a folder")
        return [ShardFile(path, "", "")]
    if not path.is_dir():
        raise DataError("there is nothing here", file=path)
    shards = [_shard(file, path) for file in files_below(path, ".bin")]
    if not shards:
        raise DataError("there are no token files (.bin) in this folder", file=path)
    return sorted(shards, key=lambda shard: (shard.split, shard.type, shard.path))


def find_lone_metas(path: Path) -> list[Path]:
    """Metas below a folder whose ``.bin`` is not there."""
    metas = files_below(path, ".bin.meta") if path.is_dir() else ()
    return sorted(meta for meta in metas if not meta.with_suffix("").exists())


def find_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer kept in a folder ``tokenizer`` beside the data or above it; None without one."""
    for folder in _upwards(path):
        if (folder / "tokenizer").is_dir():
            return load_tokenizer(folder / "tokenizer")
    return None


def find_origin(path: Path, document: int) -> str | None:
    """The raw file of a document of a ``.bin``, where an ``origins.json`` above it says so."""
    for folder in _upwards(path):
        if (folder / "origins.json").is_file():
            origins = Origins.load(folder)
            shard = path.absolute().relative_to(folder).as_posix()
            return origins.of(shard, document) if shard in origins.shards else None
    return None


def _upwards(path: Path) -> list[Path]:
    path = path.absolute()
    return [path, *path.parents][: _UP + 1]


def _shard(path: Path, root: Path) -> ShardFile:
    parts = path.relative_to(root).parts[:-1]
    if parts and parts[0] in SPLITS:
        split, parts = parts[0], parts[1:]
    elif root.name in SPLITS:
        split = root.name
    else:
        split = ""
    return ShardFile(path, split, parts[0] if parts else "" if split else root.absolute().name)

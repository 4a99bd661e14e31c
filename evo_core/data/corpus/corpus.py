"""The token shards of a folder as documents of each data type, in an order that how they are grouped does not change.

Where ``origins.json`` lies beside the folder, a type's documents are numbered by (raw file, number in it): a dataset
that was refreshed piece by piece, and has other shards for it, is the same as one made at once. Elsewhere they are
numbered as they lie: file by file in the order of paths.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evo_core.data.corpus.document_set import DocumentSet, DocumentSpan, Table, tabulate
from evo_core.data.corpus.index import Arrays, Index
from evo_core.data.corpus.token_cache import TokenFile, map_cached, open_token_files
from evo_core.data.shards.folder import bin_files, data_types
from evo_core.data.shards.format import BinReader
from evo_core.data.shards.origins import ORIGINS, Origins
from evo_core.errors import ConfigError

log = logging.getLogger(__name__)


class MinLength(NamedTuple):
    """Tokens of the shortest document: for all files, and for those whose path below the folder holds a text.

    The path begins with a slash: ``/cn/train_000.bin``.
    """

    general: int = 0
    by_text: Mapping[str, int] = {}

    def of(self, path: str) -> int:
        """The one for a file.

        Raises:
            ConfigError: several texts are in its path.
        """
        matching = [text for text in self.by_text if text in path]
        if len(matching) > 1:
            raise ConfigError(
                f"{' and '.join(matching)} are both in the path {path}: one file has one min_length",
                key="data.min_length_dict",
                hint="write longer parts of the path",
            )
        return self.by_text[matching[0]] if matching else self.general

    def unused(self, paths: Iterable[str]) -> list[str]:
        """The texts that are in none of the paths."""
        paths = list(paths)
        return [text for text in self.by_text if not any(text in path for path in paths)]


NO_MIN_LENGTH = MinLength()


class Corpus(NamedTuple):
    """Documents by data type, a digest of each type's tokens in their order, and how many tokens are trained on."""

    documents: dict[str, DocumentSet]
    digests: dict[str, str]
    trained: dict[str, int]


def open_corpus(
    folder: Path,
    types: Sequence[str] | None = None,
    *,
    vocab_size: int | None = None,
    min_length: MinLength = NO_MIN_LENGTH,
    by_origin: bool = True,
    first: int = 0,
    index: Index | None = None,
) -> Corpus:
    """Open the shards of some data types.

    Args:
        folder: of token shards.
        types: which of them; None means all.
        vocab_size: ids must be below it.
        min_length: shorter documents are left out.
        by_origin: False numbers documents as InternEvo does, in the order of `bin_files`, whatever
            ``origins.json`` says.
        first: as for `open_token_files`.
        index: where the processes of this machine share what they find out; the ids then are in the token cache.

    Raises:
        DataError: a file is missing or damaged, or an id is outside the vocabulary.
        ConfigError: a file matches several keys of min_length_dict.
    """
    paths = {name: bin_files(folder, name) for name in (data_types(folder) if types is None else types)}
    if by_origin:
        paths = {name: sorted(of_type) for name, of_type in paths.items()}
    everything = [path for of_type in paths.values() for path in of_type]
    warn_of_unused(min_length, folder, everything)
    opened: list[TokenFile] = []

    def tables() -> Arrays:
        # Only the process that works the tables out opens the files for it; the others find their ids in the cache.
        opened.extend(open_token_files(everything, first=first, in_memory=index is None))
        return _tables(folder, paths, opened, min_length, by_origin=by_origin)

    found = (index or Index()).arrays("corpus", tables)
    if vocab_size is not None:
        check_ids(everything, found["max_ids"].tolist(), vocab_size)
    if opened:
        ids = [file.ids for file in opened]
    else:
        ids = _mapped_or_decoded(everything, [Path(path.decode()) for path in found["cached"].tolist()])
    return _corpus(paths, found, ids)


def _tables(
    folder: Path,
    paths: Mapping[str, Sequence[Path]],
    opened: Sequence[TokenFile],
    min_length: MinLength,
    *,
    by_origin: bool,
) -> Arrays:
    """What is known of all documents, as arrays that processes can share: see `_corpus`, which reads them."""
    files = iter(opened)
    arrays: dict[str, np.ndarray] = {
        "max_ids": np.array([file.max_id for file in opened], np.int64),
        "cached": np.array([str(file.cached or "").encode() for file in opened]),
    }
    for number, of_type in enumerate(paths.values()):
        own = [next(files) for _ in of_type]
        spans = spans_by_origin(folder, {file.path: len(file) for file in own}) if by_origin else None
        table, digest, trained = tabulate(own, [min_length.of(below(folder, path)) for path in of_type], spans)
        arrays |= {f"{number}-{part}": array for part, array in table._asdict().items()}
        arrays[f"{number}-digest-and-trained"] = np.array([digest.encode(), str(trained).encode()])
    return arrays


def _corpus(paths: Mapping[str, Sequence[Path]], found: Arrays, ids: Sequence[np.ndarray]) -> Corpus:
    """The corpus that `_tables` tells of, with the ids of its files: int32 [tokens] of each."""
    corpus, files = Corpus({}, {}, {}), iter(ids)
    for number, (name, of_type) in enumerate(paths.items()):
        table = Table(*(found[f"{number}-{part}"] for part in Table._fields))
        corpus.documents[name] = DocumentSet([next(files) for _ in of_type], table)
        digest, trained = found[f"{number}-digest-and-trained"].tolist()
        corpus.digests[name], corpus.trained[name] = digest.decode(), int(trained)
    return corpus


def warn_of_unused(min_length: MinLength, folder: Path, paths: Sequence[Path]) -> None:
    """Say which texts of min_length_dict are in the path of no file."""
    for text in min_length.unused(below(folder, path) for path in paths):
        log.warning("data.min_length_dict: %r is in the path of no file of %s, e.g. /cn/train_000.bin", text, folder)


def check_ids(paths: Sequence[Path], max_ids: Sequence[int], vocab_size: int) -> None:
    """Look for the id that is too large only where there is one: a look at every document takes as long as decoding.

    Raises:
        DataError: an id is outside the vocabulary.
    """
    for path, max_id in zip(paths, max_ids, strict=True):
        if max_id >= vocab_size:
            BinReader(path).check(vocab_size)


def below(folder: Path, path: Path) -> str:
    """A file's path below the folder of shards, with a slash in front."""
    return f"/{path.relative_to(folder).as_posix()}"


def spans_by_origin(folder: Path, documents: Mapping[Path, int]) -> list[DocumentSpan] | None:
    """The documents of one type by (raw file, number in it); None where nobody says.

    Args:
        documents: how many each ``.bin`` of the type has; spans have their numbers in this order.
    """
    parent, name = folder.absolute().parent, folder.absolute().name
    if not (parent / ORIGINS).is_file():
        return None
    counts = {name + below(folder, path): count for path, count in documents.items()}
    shards = {shard: number for number, shard in enumerate(counts)}
    runs = Origins.load(parent).in_order(counts)
    return [DocumentSpan(shards[run.shard], run.start, run.stop) for run in runs]


def _mapped_or_decoded(paths: Sequence[Path], cached_files: Sequence[Path]) -> list[np.ndarray]:
    """The ids of files whose documents another process has listed."""
    try:
        return [map_cached(path).ids for path in cached_files]
    except OSError:  # no cache folder there, or it was emptied meanwhile
        return [file.ids for file in open_token_files(paths, in_memory=False)]

"""Samples to token files: a dataset split into train and valid, or one file for a pipeline to split."""

from __future__ import annotations

import errno
import os
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from evo_core.data.sft.chat import find_template
from evo_core.data.sft.formats import BY_TEMPLATE
from evo_core.data.sft.samples import Progress, SampleLine, SftSettings, Skipped, read_samples
from evo_core.data.shards.folder import SPLITS, files_below
from evo_core.data.shards.format import BinWriter, meta_path
from evo_core.data.shards.origins import ORIGINS, Origins
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import DataError
from evo_core.storage.atomic import new_draft, publish
from evo_core.storage.files import delete, new_folder, write_file

_NAME = "dataset.bin"


@dataclass
class Counts:
    """What lies in one token file.

    Attributes:
        samples, tokens: in all.
        trained: tokens that are trained on.
    """

    samples: int = 0
    tokens: int = 0
    trained: int = 0


@dataclass
class SftResult:
    """What came out.

    Attributes:
        note: what a person should know about the format.
        splits: by name, ``train`` and, if there is one, ``valid``.
        cut: samples that were longer than they may be.
        skipped: records left out, and why.
    """

    note: str
    splits: dict[str, Counts] = field(default_factory=dict)
    cut: int = 0
    skipped: Skipped = field(default_factory=Skipped)


def write_sft_file(files: Sequence[Path], output: Path, settings: SftSettings, *, workers: int = 1) -> SftResult:
    """The samples of files as one ``.bin`` with its meta.

    Raises:
        DataError: naming the file and the record. Nothing is written then.
    """
    encoder = settings.encoder()
    result = SftResult(encoder.note, splits={"train": Counts()})
    samples = read_samples(files, settings, encoder, result.skipped, workers=workers)
    with _full_disk_said(output), closing(samples), BinWriter(output) as writer:
        for sample in samples:
            writer.write_line(sample.line, sample.tokens)
            result.cut += sample.cut
            _count(result.splits["train"], sample.tokens, sample.trained)
    return result


def write_sft_dataset(
    files: Sequence[Path],
    output: Path,
    settings: SftSettings,
    *,
    split_ratio: float = 0.1,
    seed: int = 0,
    data_type: str = "en",
    workers: int = 1,
    on_progress: Progress = lambda share, tokens: None,
) -> SftResult:
    """Samples below `output`, as a training job reads them, in the order of the records::

        train/en/dataset.bin(.meta)   valid/en/dataset.bin(.meta)   tokenizer/…   origins.json

    The valid part are ``int(split_ratio * samples)`` samples drawn without replacement; the others are the train
    part. Files of an earlier run of the same name are replaced.

    Args:
        files: see `evo_core.data.sft.records`.
        output: the folder.
        settings: how records become samples.
        split_ratio: share of the samples held out, 0 <= split_ratio < 1; 0 writes no valid part.
        seed: draws another valid part.
        data_type: the folder below train/ and valid/.
        workers: processes.
        on_progress: called with (share done, tokens).

    Raises:
        DataError: naming the file and the record; there are too few samples to split; the disk is full; the
            output holds a folder ``tokenizer`` or shards of another type that are not of an earlier run. Nothing is
            written then.
    """
    _check(output, split_ratio, seed, data_type)
    others = _of_other_types(output, data_type)
    encoder = settings.encoder()
    result = SftResult(encoder.note)
    samples = read_samples(files, settings, encoder, result.skipped, workers=workers, on_progress=on_progress)
    with _full_disk_said(output), _staging(output) as staging, closing(samples):
        # Which samples are held out depends on how many there are: they wait in a file without a name.
        with tempfile.TemporaryFile(dir=staging) as spool:
            table = _Table()
            for sample in samples:
                spool.write(sample.line)
                table.add(sample)
                result.cut += sample.cut
            held_out = _held_out(len(table), split_ratio, seed, files, result.skipped)
            spool.seek(0)
            folders = {split: staging / split / data_type for split in (SPLITS if split_ratio > 0 else SPLITS[:1])}
            origins = _write_splits(spool, table, held_out, folders, staging, _names(files), result)
        if others:
            origins = origins.and_of(Origins.load(output), others)
        origins.save(staging)
        keep_tokenizer(encoder.tokenizer, settings, staging / "tokenizer")
        _publish(staging, output, data_type)
    return result


def _check(output: Path, split_ratio: float, seed: int, data_type: str) -> None:
    if not 0 <= split_ratio < 1:
        raise DataError(f"must be at least 0 and below 1, not {split_ratio}", key="split_ratio")
    if not data_type or data_type.startswith(".") or Path(data_type).name != data_type:
        raise DataError(f"{data_type!r} is no name for a data type: it names a folder", key="type")
    if not 0 <= seed < 2**32:
        raise DataError(f"must be at least 0 and below 2**32, not {seed}", key="seed")
    if (output / "tokenizer").exists() and not (output / ORIGINS).exists():
        raise DataError("this folder is in the way: no earlier run wrote it", file=output / "tokenizer")


def _of_other_types(output: Path, data_type: str) -> list[str]:
    """The shards that earlier runs left of other types, by their paths below the output.

    Raises:
        DataError: of some of them no run says where they come from, and no reader would know their order.
    """
    places = [folder for split in SPLITS for folder in (output / split).glob("[!.]*/") if folder.name != data_type]
    shards = [path.relative_to(output).as_posix() for folder in places for path in files_below(folder, ".bin")]
    known = Origins.load(output).shards if (output / ORIGINS).exists() else ()
    if unknown := [shard for shard in shards if shard not in known]:
        raise DataError(
            "this shard is in the way: no earlier run wrote it, and it is not known where its documents come from",
            file=output / unknown[0],
            hint="write into another folder, or move it out of this one",
        )
    return shards


def _write_splits(
    spool: IO[bytes],
    table: _Table,
    held_out: np.ndarray,
    folders: Mapping[str, Path],
    root: Path,
    names: Sequence[str],
    result: SftResult,
) -> Origins:
    """Put the samples of a spool into the files of their splits, and count them in the result.

    Args:
        spool: the lines of all samples behind each other.
        held_out: bool [samples].
        folders: of each split, train first.
        root: what origins name shards from.
        names: of the files, by their numbers in the table.
    """
    origins = Origins(names)
    with ExitStack() as stack:
        writers = []
        for split, folder in folders.items():
            writer = stack.enter_context(BinWriter(folder / _NAME))
            writers.append(_SplitWriter(writer, root, origins))
            result.splits[split] = writers[-1].counts
        for (size, tokens, trained, file), held in zip(table.rows(), held_out, strict=True):
            writers[int(held)].write(spool.read(size), tokens, trained, names[file])
    return origins


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """A hidden folder in the output, gone at the end; so is the output if nothing was put there."""
    staging = new_draft(output / "staging")
    staging.mkdir()
    try:
        yield staging
    finally:
        delete(staging)
        with suppress(OSError):
            output.rmdir()


def _publish(staging: Path, output: Path, data_type: str) -> None:
    """Move what is complete to its name; only renames, so that a full disk cannot leave half of it."""
    delete(output / "tokenizer")
    bins = [Path(split, data_type, _NAME) for split in SPLITS]
    stale = [path for of_bin in bins for path in (meta_path(output / of_bin), output / of_bin)]
    made = [Path("tokenizer"), *(path for of_bin in bins for path in (of_bin, meta_path(of_bin))), Path(ORIGINS)]
    made = [path for path in made if (staging / path).exists()]
    for path in made:
        (output / path).parent.mkdir(parents=True, exist_ok=True)
    publish([(staging / path, output / path) for path in made], stale=stale)  # an earlier metas described other bytes


@contextmanager
def _full_disk_said(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError("the disk is full", file=output, hint="free some space and run again") from None


class _Table:
    """What is known of each sample: its line's bytes, tokens, trained tokens and the number of its file."""

    def __init__(self) -> None:
        self._values = array("q")

    def __len__(self) -> int:
        return len(self._values) // 4

    def add(self, sample: SampleLine) -> None:
        self._values.extend((len(sample.line), sample.tokens, sample.trained, sample.file))

    def rows(self) -> Iterator[tuple[int, int, int, int]]:
        values = iter(self._values)
        return zip(values, values, values, values, strict=True)


class _SplitWriter:
    """The train or the valid part while it is written."""

    def __init__(self, writer: BinWriter, output: Path, origins: Origins) -> None:
        self.counts = Counts()
        self._writer, self._origins = writer, origins
        self._shard = writer.path.relative_to(output).as_posix()
        self._origin = ""

    def write(self, line: bytes, tokens: int, trained: int, origin: str) -> None:
        if origin != self._origin:
            self._origins.add(self._shard, self._writer.documents, origin, 0)
            self._origin = origin
        self._writer.write_line(line, tokens)
        _count(self.counts, tokens, trained)


def _names(files: Sequence[Path]) -> list[str]:
    """What the files are called below the folder that holds them all."""
    folder = os.path.commonpath([file.parent for file in files])
    return [file.relative_to(folder).as_posix() for file in files]


def _held_out(samples: int, split_ratio: float, seed: int, files: Sequence[Path], skipped: Skipped) -> np.ndarray:
    """bool [samples]: what InternEvo draws, without the repetitions."""
    if not samples:
        reasons = [f"{skipped.count:,} wrong, the first: {skipped.first}"] if skipped.count else []
        if skipped.no_room:
            reasons.append(f"{skipped.no_room:,} with a prompt that leaves no room for an answer")
        left_out = f": records were left out, {'; '.join(reasons)}" if reasons else ""
        raise DataError(f"there is not a single sample in it{left_out}", file=files[0])
    count = int(samples * split_ratio)
    if split_ratio > 0 and count == 0:
        raise DataError(
            f"{samples} samples are too few for a split ratio of {split_ratio}: the valid part would have none",
            file=files[0],
            key="split_ratio",
            hint="give a larger one, or 0 for no valid part",
        )
    held_out = np.zeros(samples, bool)
    held_out[np.random.RandomState(seed).choice(samples, count, replace=False)] = True
    return held_out


def _count(counts: Counts, tokens: int, trained: int) -> None:
    counts.samples += 1
    counts.tokens += tokens
    counts.trained += trained


def keep_tokenizer(tokenizer: Tokenizer, settings: SftSettings, folder: Path) -> None:
    """Put the tokenizer into a folder, with its configuration and the template of formats that have one.

    It is there in one step. A folder of that name is replaced.
    """
    with new_folder(folder, replace=True) as draft:
        tokenizer.copy_to(draft)
        if settings.record_format in BY_TEMPLATE:
            template = find_template(tokenizer, settings.chat_template)
            write_file(draft / "chat_template.jinja", template.text)

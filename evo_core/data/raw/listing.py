"""Which raw files there are: the one listing of every command and step, of a folder on disk or in an object store.

Files at any depth, in the order of their paths (by code point, with forward slashes), empty ones too, as
`evo_core.storage.files.list_files` finds them; what is left out is counted, by reason: hidden, linked again, links to
nothing, unreadable folders, devices, and what a pattern or a format does not take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from evo_core.data.raw.patterns import any_of, depth_of, split_pattern
from evo_core.errors import DataError, printable
from evo_core.storage.files import file_exists, file_info, list_files
from evo_core.storage.listed import Listed
from evo_core.storage.location import Location, is_remote, local_path

OTHER_FORMAT, EMPTY = "of another format", "empty"


@dataclass
class LeftOut:
    """How much a listing passed over, by reason, with the first of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, path: str) -> None:
        """Count a file, or a folder as one."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first[reason] = min(self.first.get(reason, path), path)

    def update(self, other: LeftOut) -> None:
        """Count what another listing left out."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            self.first.setdefault(reason, other.first[reason])

    @property
    def total(self) -> int:
        """Files and folders left out."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        """``3 hidden (.git), 1 linked again (loop)``; empty where nothing is left out."""
        return ", ".join(
            f"{count:,} {reason} ({printable(self.first[reason])})" for reason, count in sorted(self.counts.items())
        )


@dataclass
class Listing:
    """Files in the order of their paths, and what was left out."""

    files: list[Listed]
    left_out: LeftOut

    def only(self, wanted: Callable[[Listed], bool], reason: str) -> Self:
        """The files that are wanted; the others count as left out."""
        for file in self.files:
            if not wanted(file):
                self.left_out.add(reason, file.path)
        return type(self)([file for file in self.files if wanted(file)], self.left_out)

    def check_names(self) -> Self:
        """Itself, if every name can be written down.

        Raises:
            DataError: a name is not UTF-8, or has an empty part; names that nobody asks for do not matter.
        """
        for file in self.files:
            try:
                file.uri.encode()
            except UnicodeEncodeError:
                raise DataError(
                    "this file's name is not UTF-8", file=file.uri, hint="rename it, or leave it out"
                ) from None
            if "" in file.path.split("/"):
                raise DataError("this file's name has an empty part (//)", file=file.uri, hint="rename it")
        return self


def find_files(location: Location) -> Listing:
    """The files that a location means: itself, those below it if it is a folder, or those that fit a pattern.

    Raises:
        DataError: there is none, or the store cannot be asked.
    """
    if file_exists(location):
        return Listing([file_info(location)], LeftOut())
    listing = _below(location)
    if not listing.files:
        left_out = f"left out: {listing.left_out}" if listing.left_out.total else None
        message = "there is no such file, no file in such a folder and none that matches"
        raise DataError(message, file=location, hint=left_out)
    return listing


def list_folder(root: Location, *, depth: int | None = None) -> Listing:
    """Every file below a folder.

    Args:
        depth: the most parts that a file's path may have below the root; None for any number.

    Raises:
        DataError: there is no such folder, or it cannot be read.
    """
    left_out = LeftOut()
    return Listing(list_files(root, left_out.add, depth=depth), left_out)


def _below(location: Location) -> Listing:
    text = str(location) if is_remote(location) else str(local_path(location))
    if not is_remote(text) and Path(text).is_dir():
        return list_folder(Path(text))
    folder, pattern = split_pattern(text)
    if not pattern:
        return list_folder(text) if is_remote(text) else Listing([], LeftOut())
    if not is_remote(text) and not Path(folder).is_dir():
        return Listing([], LeftOut())
    listing = list_folder(folder if is_remote(text) else Path(folder), depth=depth_of(pattern))
    fits = any_of((pattern,))
    return Listing([file for file in listing.files if fits.fullmatch(file.path)], listing.left_out)

"""The ``.metadata`` of a `torch.distributed.checkpoint`, read without running anything that is in it.

The file is a pickle, which torch reads as such: whoever writes one decides what code runs. And whoever hands out a
checkpoint makes its digests, which say nothing of that. So here it is taken apart by an unpickler that knows only the
names which such files have, and gives records without behaviour for them; what they hold is checked, and torch's own
objects are made from it. Whatever reads tensors of ours reads them by `Reader`.
"""

from __future__ import annotations

import errno
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from evo_core.checkpoint.blocks import BlockReader, Span
from evo_core.checkpoint.explained import explained
from evo_core.checkpoint.inside import inside
from evo_core.checkpoint.records import FileRecord, content_record
from evo_core.checkpoint.restricted import RestrictedUnpickler
from evo_core.errors import DamagedError
from evo_core.placement import Rectangle, tiling_fault
from evo_core.storage.files import below, file_sizes, read_if_there
from evo_core.storage.location import Location
from evo_core.storage.seekable import Seekable

_FILE = ".metadata"


class _Record:
    """Stands for an object of torch's; `state` is what it holds."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __getitem__(self, name: str) -> Any:
        return self.state.get(name) if isinstance(self.state, dict) else None


class _Metadata(_Record): ...


class _Tensor(_Record): ...


class _Bytes(_Record): ...


class _Properties(_Record): ...


class _Chunk(_Record): ...


class _Index(_Record):
    """The key of a dictionary: told from others by itself."""


class _Place(_Record): ...


class _Other(_Record):
    """What nothing here depends on: memory formats, layouts, the path the checkpoint was written to."""


_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_TORCH = "torch.distributed.checkpoint"
_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")

_NAMES: dict[tuple[str, str], Any] = {
    (f"{_TORCH}.metadata", "Metadata"): _Metadata,
    (f"{_TORCH}.metadata", "TensorStorageMetadata"): _Tensor,
    (f"{_TORCH}.metadata", "BytesStorageMetadata"): _Bytes,
    (f"{_TORCH}.metadata", "TensorProperties"): _Properties,
    (f"{_TORCH}.metadata", "ChunkStorageMetadata"): _Chunk,
    (f"{_TORCH}.metadata", "MetadataIndex"): _Index,
    (f"{_TORCH}.metadata", "StorageMeta"): _Other,
    (f"{_TORCH}.metadata", "_MEM_FORMAT_ENCODING"): _Other,
    (f"{_TORCH}.filesystem", "_StorageInfo"): _Place,
    ("torch.serialization", "_get_layout"): _Other,
    ("torch", "Size"): tuple,
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
    **{(module, name): _Other for module in ("pathlib", "pathlib._local") for name in _PATHS},
}
"""Every name that a file of torch 2.4 to 2.13 has; any other is refused."""


class Reader(FileSystemReader):
    """Reads the tensors of a folder, by metadata that were checked; of its files what is asked for, each part once.

    Args:
        folder: where they are, in a store too.
        records: what the manifest says of the folder's files, by name; what is read is compared with it. None where
            there is no manifest.

    Raises:
        CheckpointError: there are none, or the store does not answer.
        DamagedError: they are damaged, or name code or a file elsewhere.
    """

    def __init__(self, folder: Location, records: Mapping[str, FileRecord] | None = None) -> None:
        super().__init__("")
        self.folder, self.records = folder, records
        self.metadata = read_metadata(folder, records)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata

    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """What is stored, by name."""
        entries = self.metadata.state_dict_metadata
        return {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The whole shape of each tensor."""
        return {name: tuple(entry.size) for name, entry in self.tensors().items()}

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what was planned: file by file, in the order in which it lies there."""
        by_file: dict[str, dict[Span, list[ReadItem]]] = defaultdict(lambda: defaultdict(list))
        for item in plan.items:
            place = self.storage_data[item.storage_index]
            by_file[place.relative_path][place.offset, place.length].append(item)
        for name, by_span in by_file.items():
            self._read_file(name, by_span, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_file(self, name: str, by_span: Mapping[Span, Sequence[ReadItem]], planner: LoadPlanner) -> None:
        file, record = below(self.folder, name), self.records[name] if self.records is not None else None
        spans = sorted(by_span)
        if any(start + length > following for (start, length), (following, _) in pairwise(spans)):
            raise DamagedError("two parts of it lie in one place", file=file)
        with explained(file):
            opened = BlockReader(file, record, spans)
        with opened as blocks:
            for span in spans:
                with explained(file):
                    content = _Content(blocks.read(*span))
                    stored = torch.load(cast(Any, content), map_location="cpu", weights_only=True)
                for item in by_span[span]:
                    target = planner.resolve_tensor(item).detach()
                    part = narrow_tensor_by_index(stored, item.storage_offsets, item.lengths)
                    if part.shape != target.shape:  # copying would repeat it
                        message = (
                            f"{item.storage_index.fqn} has a part of {list(part.shape)}, not of {list(target.shape)}"
                        )
                        raise DamagedError(message, file=file)
                    target.copy_(part)
                    planner.commit_tensor(item, target)


class _Content(Seekable):
    """Bytes as a file: what is read is copied once, to where it is wanted."""

    def __init__(self, content: memoryview) -> None:
        super().__init__(len(content))
        self._content = content

    def readinto(self, buffer: Any) -> int:
        part = self._content[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def read_metadata(folder: Location, records: Mapping[str, FileRecord] | None = None) -> Metadata:
    """What a folder of tensors holds. Entries that are no tensors are left out: torch would unpickle them.

    Raises:
        CheckpointError, DamagedError: see `Reader`.
    """
    file = below(folder, _FILE)
    with explained(file, "no tensors can be read here"):
        content = read_if_there(file)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", str(file))
        if records is not None and content_record(content, records[_FILE]) != records[_FILE]:
            raise DamagedError("does not have the digest it was written with", file=file)
        lengths = {name: record.size for name, record in records.items()} if records is not None else file_sizes(folder)
        return _metadata(RestrictedUnpickler(io.BytesIO(content), _NAMES).load(), folder, lengths)


def _metadata(found: Any, folder: Location, lengths: Mapping[str, int]) -> Metadata:
    entries, places = (_mapping(_of(found, _Metadata)[name]) for name in ("state_dict_metadata", "storage_data"))
    tensors = {str(name): _tensor(str(name), entry) for name, entry in entries.items() if not isinstance(entry, _Bytes)}
    stored = {}
    for key, value in places.items():
        index, place = _of(key, _Index), _of(value, _Place)
        offset = None if index["offset"] is None else _sizes(index["offset"])
        if place["transform_descriptors"]:
            raise ValueError("its tensors are compressed")
        inside(Path(), place["relative_path"], file=below(folder, _FILE))
        start, length = _sizes((place["offset"], place["length"]))
        stored[MetadataIndex(index["fqn"], offset)] = _StorageInfo(place["relative_path"], start, length)
    _check_extents(tensors, stored, folder, lengths)
    return Metadata(dict(tensors), planner_data={}, storage_data=stored, storage_meta=StorageMeta())


def _check_extents(
    tensors: Mapping[str, TensorStorageMetadata],
    stored: Mapping[MetadataIndex, _StorageInfo],
    folder: Location,
    lengths: Mapping[str, int],
) -> None:
    """Check that each part of a tensor has a place that holds as many bytes, in a file that is as long."""
    for name, tensor in tensors.items():
        for chunk in tensor.chunks:
            place = stored.get(MetadataIndex(name, chunk.offsets))
            if place is None:
                raise ValueError(f"it does not say where a part of {name} lies")
            file = place.relative_path
            if file not in lengths:
                raise DamagedError("is missing", file=below(folder, file))
            size = math.prod(chunk.sizes) * tensor.properties.dtype.itemsize
            if size > place.length or place.offset + place.length > lengths[file]:
                raise DamagedError(f"is too short for its part of {name}", file=below(folder, file))


def _tensor(name: str, entry: Any) -> TensorStorageMetadata:
    size = _sizes(_of(entry, _Tensor)["size"])
    state = _of(entry["properties"], _Properties).state
    if not isinstance(state, tuple) or not isinstance(state[0], torch.dtype):
        raise ValueError(f"{name} has no type")
    chunks = []
    for chunk in entry["chunks"]:
        chunks.append(ChunkStorageMetadata(_sizes(_of(chunk, _Chunk)["offsets"]), _sizes(chunk["sizes"])))
    if fault := tiling_fault(size, (Rectangle(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in chunks)):
        raise ValueError(f"parts of {name} do not make it up: {fault}")
    return TensorStorageMetadata(TensorProperties(state[0]), size, chunks)


def _of(found: Any, kind: type[_Record]) -> _Record:
    if not isinstance(found, kind):
        raise ValueError(f"{type(found).__name__} in place of a record of torch's")
    return found


def _mapping(found: Any) -> Mapping[Any, Any]:
    if not isinstance(found, Mapping):
        raise ValueError(f"{type(found).__name__} in place of names")
    return found


def _sizes(found: Any) -> torch.Size:
    if not isinstance(found, tuple) or any(type(number) is not int or not 0 <= number < 2**63 for number in found):
        raise ValueError(f"{found!r} in place of sizes")
    return torch.Size(found)

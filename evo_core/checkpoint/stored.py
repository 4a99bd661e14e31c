"""The ``.metadata`` of a `torch.distributed.checkpoint`, read without running anything that is in it.

The file is a pickle, which torch reads as such: whoever writes one decides what code runs. And whoever hands out a
checkpoint makes its digests, which say nothing of that. So here it is taken apart by an unpickler that knows only the
names which such files have, and gives records without behaviour for them; what they hold is checked, and torch's own
objects are made from it. Whatever reads tensors of ours reads them by `Reader`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
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

from evo_core.checkpoint.inside import inside
from evo_core.checkpoint.restricted import RestrictedUnpickler
from evo_core.errors import CheckpointError
from evo_core.placement import Rectangle, tiling_fault

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
    """Reads the tensors of a folder, by metadata that were checked.

    Raises:
        CheckpointError: there are none, they are damaged, or they name code or a file elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.metadata = read_metadata(folder)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata

    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """What is stored, by name."""
        entries = self.metadata.state_dict_metadata
        return {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def read_metadata(folder: Path) -> Metadata:
    """What a folder of tensors holds. Entries that are no tensors are left out: torch would unpickle them.

    Raises:
        CheckpointError: see `Reader`.
    """
    try:
        content = (folder / _FILE).read_bytes()
        return _metadata(RestrictedUnpickler(io.BytesIO(content), _NAMES).load(), folder)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"no tensors can be read here: {error.strerror}", file=folder / _FILE) from error
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise CheckpointError(f"no tensors can be read here: {error}", file=folder / _FILE) from error


def _metadata(found: Any, folder: Path) -> Metadata:
    entries, places = (_mapping(_of(found, _Metadata)[name]) for name in ("state_dict_metadata", "storage_data"))
    tensors = {str(name): _tensor(str(name), entry) for name, entry in entries.items() if not isinstance(entry, _Bytes)}
    stored = {}
    for key, value in places.items():
        index, place = _of(key, _Index), _of(value, _Place)
        offset = None if index["offset"] is None else _sizes(index["offset"])
        if place["transform_descriptors"]:
            raise ValueError("its tensors are compressed")
        inside(folder, place["relative_path"], file=folder / _FILE)
        start, length = _sizes((place["offset"], place["length"]))
        stored[MetadataIndex(index["fqn"], offset)] = _StorageInfo(place["relative_path"], start, length)
    _check_extents(tensors, stored, folder)
    return Metadata(dict(tensors), planner_data={}, storage_data=stored, storage_meta=StorageMeta())


def _check_extents(
    tensors: Mapping[str, TensorStorageMetadata], stored: Mapping[MetadataIndex, _StorageInfo], folder: Path
) -> None:
    """Check that each part of a tensor has a place that holds as many bytes, in a file that is as long."""
    lengths: dict[str, int] = {}
    for name, tensor in tensors.items():
        for chunk in tensor.chunks:
            place = stored.get(MetadataIndex(name, chunk.offsets))
            if place is None:
                raise ValueError(f"it does not say where a part of {name} lies")
            file = place.relative_path
            if file not in lengths:
                path = folder / file
                if not path.is_file():
                    raise CheckpointError("is missing", file=path)
                lengths[file] = path.stat().st_size
            size = math.prod(chunk.sizes) * tensor.properties.dtype.itemsize
            if size > place.length or place.offset + place.length > lengths[file]:
                raise CheckpointError(f"is too short for its part of {name}", file=folder / file)


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

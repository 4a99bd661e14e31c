"""safetensors files, read lazily and written one tensor at a time.

The format: 8 bytes with the length of the header (little-endian), a JSON header with type, shape and place of each
tensor, then the tensors one behind the other. The library's own writer wants a whole file in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evo_core.errors import CheckpointError
from evo_core.placement import Rectangle
from evo_core.weights.lazy import Lazy

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def read_safetensors(path: Path) -> dict[str, Lazy]:
    """The tensors of a file by name.

    Raises:
        CheckpointError: it is damaged, or has tensors of a type that is not read here.
    """
    import safetensors

    try:
        file = safetensors.safe_open(path, framework="pt", device="cpu")
        tensors = {}
        for name in file.keys():  # noqa: SIM118  (it is no mapping)
            view = file.get_slice(name)
            if view.get_dtype() not in _DTYPES:
                hint = "take weights that are not quantised"
                raise CheckpointError(f"{name} is of type {view.get_dtype()}", file=path, hint=hint)
            tensors[name] = Lazy(tuple(view.get_shape()), _DTYPES[view.get_dtype()], _reader(path, file, name))
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot be read as safetensors: {error}", file=path) from error
    return tensors


def write_safetensors(path: Path, tensors: Mapping[str, Lazy]) -> None:
    """Write a file into a folder that is not seen yet; in memory is one tensor at a time."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        place = [at, at + tensor.nbytes]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for tensor in tensors.values():
            stream.write(_bytes(tensor.read()))


def _reader(path: Path, file: Any, name: str) -> Callable[[Rectangle], Tensor]:
    def read(where: Rectangle) -> Tensor:
        try:
            return where.of(file.get_tensor(name))  # a view of the mapped file, and so is a part of it
        except Exception as error:
            raise CheckpointError(f"{name} cannot be read: {error}", file=path) from error

    return read


def _bytes(tensor: Tensor) -> Any:
    """The elements as they lie in memory (all supported machines are little-endian)."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data if tensor.numel() else b""

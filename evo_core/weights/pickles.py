"""Files that torch.save wrote, read without running code that is in them.

Tensors come mapped into memory, so a file of any size costs nothing until one of its tensors is used.
"""

from __future__ import annotations

import collections
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evo_core.checkpoint.restricted import RestrictedUnpickler
from evo_core.errors import CheckpointError
from evo_core.weights.lazy import Lazy, held


class _Plain(dict):
    """Stands for the dictionaries of InternEvo, which are of a class of its own."""

    def __setstate__(self, state: Any) -> None:
        """What InternEvo keeps beside the items is of no use here."""


def _device(*place: Any) -> str:
    return ":".join(map(str, place))


_HARMLESS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("internlm.core.context.parallel_context", "Config"): _Plain,
    ("internlm.utils.config", "Config"): _Plain,
    ("torch", "device"): _device,
    ("torch", "Size"): tuple,
    **{
        ("torch", name): getattr(torch, name)
        for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "bool")
    },
}
"""The names that a settings file may use; everything else in it is refused."""


def read_tensors(path: Path) -> dict[str, Lazy]:
    """The tensors of a state dictionary by name; entries that are no tensors are left out.

    Raises:
        CheckpointError: it is damaged, or holds more than tensors and plain values.
    """
    state = _load(path)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"holds {type(state).__name__}, not tensors by name", file=path)
    tensors = {str(name): tensor.detach() for name, tensor in state.items() if isinstance(tensor, Tensor)}
    for name, tensor in tensors.items():
        _check(name, tensor, path)
    return {name: held(tensor) for name, tensor in tensors.items()}


def _check(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse what is no plain tensor, and one that repeats a few numbers to look larger than the file."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise CheckpointError(f"{name} is {kind}", file=path, hint="take weights that are plain tensors")
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{name} {list(tensor.shape)} is larger than what the file holds of it", file=path)


def read_settings(path: Path) -> dict[str, Any]:
    """A dictionary of plain values, such as InternEvo's ``model_config.pt``.

    Raises:
        CheckpointError: it is damaged, or names anything that is not plain.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(name) as stream:
                value = RestrictedUnpickler(stream, _HARMLESS).load()
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise CheckpointError(f"cannot be read as plain settings: {error}", file=path) from error
    if not isinstance(value, Mapping):
        raise CheckpointError(f"holds {type(value).__name__}, not settings by name", file=path)
    return {str(key): dict(item) if isinstance(item, _Plain) else item for key, item in value.items()}


def _load(path: Path) -> Any:
    def load(**options: Any) -> Any:
        with torch.serialization.safe_globals(_numpy_names()):
            return torch.load(path, map_location="cpu", weights_only=True, **options)

    try:
        # Files older than torch 1.6 are no archives and cannot be mapped.
        return load(mmap=True) if zipfile.is_zipfile(path) else load()
    except Exception as error:  # a damaged pickle fails in any way it likes
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"cannot be read as tensors: {first}", file=path) from error


def _numpy_names() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What old files need for the numpy values they hold beside tensors."""
    import numpy as np
    from numpy.dtypes import Float32DType, Float64DType, Int64DType, UInt32DType

    # Its home moved between numpy 1 and 2, and a file names the one it was written with.
    rebuild: Any = np.ones(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    return [
        (rebuild, "numpy.core.multiarray._reconstruct"),
        (rebuild, "numpy._core.multiarray._reconstruct"),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.ndarray,
        np.dtype,
        Int64DType,
        UInt32DType,
        Float32DType,
        Float64DType,
    ]

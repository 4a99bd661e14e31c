"""Names of number formats in a config, the floor for accumulation, and what a CPU multiplies fast."""

from __future__ import annotations

import torch

from evo_core.errors import ConfigError

_DTYPES = {
    "float64": torch.float64,
    "double": torch.float64,
    "float32": torch.float32,
    "float": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
    "fp16": torch.float16,
}


def torch_dtype(name: str | torch.dtype) -> torch.dtype:
    """The torch dtype of a config's ``model.dtype``: ``"torch.bfloat16"``, ``"half"``, ``"torch.tf32"``...

    tf32 is float32 whose matrix products run in TF32 (`allow_tf32`).

    Raises:
        ConfigError: no such dtype.
    """
    if isinstance(name, torch.dtype):
        return name
    plain = name.removeprefix("torch.")
    if plain not in _DTYPES:
        raise ConfigError(f"unknown dtype {name!r}", key="model.dtype", hint=f"one of {', '.join(_DTYPES)}")
    return _DTYPES[plain]


def allow_tf32(name: str | torch.dtype) -> None:
    """Set, for the whole process, whether float32 matrix products may run in TF32: only for dtype tf32."""
    tf32 = isinstance(name, str) and name.removeprefix("torch.") == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 as a floor, never a cast down: float64 stays float64."""
    return torch.promote_types(dtype, torch.float32)


def _native_on_cpu() -> frozenset[torch.dtype]:
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    ops = torch.ops.mkldnn
    supported = {torch.bfloat16: ops._is_mkldnn_bf16_supported(), torch.float16: ops._is_mkldnn_fp16_supported()}
    return frozenset(dtype for dtype, it_is in supported.items() if it_is)


# Asked once, here: torch.compile follows neither the question nor a function's cache.
_NATIVE_ON_CPU = _native_on_cpu()


def product_dtype(dtype: torch.dtype, device_type: str) -> torch.dtype:
    """The type to multiply matrices of a dtype in: float32 for 16 bit on a CPU without such instructions.

    Such a CPU takes 4 to 8 times as long for a product of 16-bit matrices as for one of float32, which adds up the
    same numbers and rounds once.
    """
    narrow = device_type == "cpu" and dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if narrow and dtype not in _NATIVE_ON_CPU else dtype

"""What a chip can do at most, which mfu and hfu are shares of."""

from __future__ import annotations

import logging
import re

import torch

log = logging.getLogger(__name__)

_PEAKS = {
    "GB300": 2500.0,
    "GB200": 2500.0,
    "B300": 2250.0,
    "B200": 2250.0,
    "GH200": 989.4,
    "H200 NVL": 835.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H800 PCIe": 756.0,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A10": 125.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L20": 119.5,
    "L4": 121.0,
}
"""Teraflops of dense products of 16-bit numbers added up in 32, as the maker states them, by words of a chip's name; of
names of which one has all the words of another the longer comes first."""

_SHARE = re.compile(r"\bMIG\b|\d[ABCQ]$")
"""Names of parts of a chip, ``NVIDIA A100-SXM4-40GB MIG 1g.5gb`` and ``GRID A100-10C``: their peak is another."""


def log_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Teraflops of this rank's chip at most in products of such numbers, if it is known; the log says which.

    On a CPU there is none, and nothing is said.
    """
    if device.type != "cuda":
        return None
    name, tf32 = torch.cuda.get_device_name(device), torch.get_float32_matmul_precision() != "highest"
    peak, kind = known_peak(name, dtype, tf32=tf32), str(dtype).removeprefix("torch.")
    if peak is None:
        log.info("%s: its peak for %s is not known, so there is no mfu and no hfu", name, kind)
    else:
        log.info("%s: %g teraflops at most for %s, which mfu and hfu are shares of", name, peak, kind)
    return peak


def known_peak(name: str, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """Teraflops of a chip at most, by the name that `torch.cuda.get_device_name` gives it.

    Args:
        tf32: whether products of float32 run in TF32, which every chip of the table does at half the speed of 16 bits.
            Those that do not run on other units, whose peak is not in it.
    """
    share = {torch.bfloat16: 1.0, torch.float16: 1.0, torch.float32: 0.5 if tf32 else 0.0}.get(dtype, 0.0)
    if not share or _SHARE.search(name):
        return None
    words = set(name.replace("-", " ").split())
    return next((peak * share for known, peak in _PEAKS.items() if words.issuperset(known.split())), None)

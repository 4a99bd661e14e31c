"""torch, the GPUs it sees and the attention kernel that would run: asked in a process of its own, which may crash."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.doctor.finding import Asked, Finding
from flows.doctor.programs import NoAnswer, answer

SECONDS = 90.0
"""Importing torch from a cold network file system takes a minute."""

_PROBE = """
import json, torch
from evo_core.model.ops.attention_kernels import choose
here = torch.cuda.is_available()
kernel = choose("cuda" if here else "cpu", torch.bfloat16, 128, True, False)
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if here else []
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda, "hip": getattr(torch.version, "hip", None),
    "here": here, "devices": [[d.name, d.total_memory, f"{d.major}.{d.minor}"] for d in devices],
    "bf16": torch.cuda.is_bf16_supported() if here else None,
    "nccl": ".".join(map(str, torch.cuda.nccl.version())) if here and torch.distributed.is_nccl_available() else None,
    "distributed": torch.distributed.is_available(), "kernel": kernel.name, "why": kernel.why,
}))
"""


def look(asked: Asked) -> Iterator[Finding]:
    """The build, the devices, NCCL and the kernel."""
    try:
        found = json.loads(answer([sys.executable, "-c", _PROBE], SECONDS - 5).splitlines()[-1])
    except (NoAnswer, ValueError, IndexError) as error:
        yield Finding("torch", "problem", f"it cannot be used: {error}", "reinstall torch for this machine's driver")
        return
    build = f"CUDA {found['cuda']}" if found["cuda"] else f"ROCm {found['hip']}" if found["hip"] else "CPU only"
    yield Finding("torch", "ok", f"{found['version']} ({build})")
    yield from _gpus(found)
    if not found["distributed"]:
        yield Finding("torch", "problem", "it is built without torch.distributed", "install another build of torch")
    yield Finding("attention", "ok", f"{found['kernel']} in bfloat16: {found['why']}")


def _gpus(found: dict[str, Any]) -> Iterator[Finding]:
    driver = _driver()
    if found["devices"]:
        name, memory, capability = found["devices"][0]
        what = f"{len(found['devices'])} × {name}, {memory / 2**30:.0f} GiB, compute capability {capability}"
        yield Finding("gpus", "ok", what + (f", driver {driver}" if driver else ""))
        if len({device[0] for device in found["devices"]}) > 1:
            yield Finding("gpus", "warning", "they are of several kinds: the slowest sets the pace of all")
        if not found["bf16"]:
            yield Finding("gpus", "warning", "they have no bfloat16", "set model.dtype: torch.float16")
        if found["nccl"] is None:
            hint = "install a build of torch with NCCL"
            yield Finding("nccl", "problem", "torch has no NCCL: several GPUs cannot train together", hint)
        else:
            yield Finding("nccl", "ok", found["nccl"])
    elif driver or Path("/dev/nvidia0").exists():
        what = "this machine has NVIDIA GPUs" + (f" (driver {driver})" if driver else "")
        if found["cuda"]:
            hint = f"is the driver new enough for CUDA {found['cuda']}, and CUDA_VISIBLE_DEVICES not empty?"
            yield Finding("gpus", "problem", f"{what}, and torch cannot use them", hint)
        else:
            hint = "install the CUDA build of torch"
            yield Finding("gpus", "problem", f"{what}, and this torch is built for CPUs only", hint)
    else:
        yield Finding("gpus", "not here", "no GPU on this machine")


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        told = answer(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], 20)
    except NoAnswer:
        return None
    return told.split()[0] if told.split() else None

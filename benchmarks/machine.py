"""What a figure depends on besides the code: the machine, versions, the commit."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")
"""Of a CPU: those that its matrix products are fast by."""

PACKAGES = (
    "torch", "numpy", "transformers", "tokenizers", "litgpt", "lightning", "datasets", "datatrove", "sentencepiece",
    "s3fs", "prefect",
)  # fmt: skip


def describe() -> dict[str, str]:
    """In words, by what it is; what cannot be found out is left out."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = {
        "CPU": _first(r"model name\s*: (.*)", cpu) or platform.processor() or platform.machine(),
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "flags": " ".join(sorted(set(FLAGS) & set((_first(r"(?:flags|Features)\s*: (.*)", cpu) or "").split()))),
        "memory": _memory(),
        "system": f"{_system()}, {platform.system()} {platform.release()}",
        "Python": sys.version.split()[0],
        "packages": ", ".join(versions(PACKAGES)),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
    }
    return {what: value for what, value in found.items() if value}


def versions(names: Iterable[str]) -> list[str]:
    """``name version`` of those that are installed, where this process would find them."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Of this repository, and whether files differ from it; empty outside one."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return f"{head} with changes" if head and _git("status", "--porcelain", "--untracked-files=no") else head


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _memory() -> str:
    path = Path("/proc/meminfo")
    kilobytes = _first(r"MemTotal:\s+(\d+) kB", path.read_text()) if path.exists() else None
    return f"{int(kilobytes) * 1024 / 1e9:.0f} GB" if kilobytes else ""


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1].strip() if found else None

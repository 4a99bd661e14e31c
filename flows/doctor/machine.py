"""This machine as a process sees it: cores, memory, shared memory, limits, locale."""

from __future__ import annotations

import locale
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from evo_core.cores import cores
from flows.doctor.finding import Asked, Finding
from flows.show.humanize import size

FEWEST_FILES = 4096
"""Open files that a data loader with many shards, or Prefect's server, may come to."""
LEAST_SHARED = 1 << 30
"""Bytes in /dev/shm below which batches handed from process to process may not fit: containers have 64 MB."""


def look(asked: Asked) -> Iterator[Finding]:
    """What the processes of a run get of this machine."""
    yield from _cores()
    yield from _memory()
    yield from _shared_memory()
    yield from _limits()
    yield from _text()
    yield _containers()


def _cores() -> Iterator[Finding]:
    usable, there, quota = cores(), os.cpu_count() or 1, _quota()
    told = f"{usable} of {there}" if usable != there else f"{usable}"
    if quota is not None and quota < usable:
        hint = "set `workers` of the data kinds and runtime.cpus_per_rank to it: more threads only wait"
        yield Finding("cores", "warning", f"{told}, and the container may use {quota:g} of them", hint)
    else:
        yield Finding("cores", "ok", told)


def _quota() -> float | None:
    """The cores' worth of time that the container may use; None where there is no limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        group = Path("/sys/fs/cgroup/cpu")
        limit, period = (group / "cpu.cfs_quota_us").read_text(), (group / "cpu.cfs_period_us").read_text()
        return None if int(limit) <= 0 else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def _memory() -> Iterator[Finding]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if len(line.split()) > 1}
        total, free = (1024 * kilobytes[name] for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError):
        return
    told, limit = f"{size(free)} of {size(total)} free", _memory_limit()
    if limit is not None and limit < total:
        told += f"; the container may use {size(limit)}"
        free = min(free, limit)
    if free < 1 << 30:
        yield Finding("memory", "warning", told, "importing torch and Prefect takes 1 GB")
    else:
        yield Finding("memory", "ok", told)


def _memory_limit() -> int | None:
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(file).read_text())
        except (OSError, ValueError):  # "max"
            continue
    return None


def _shared_memory() -> Iterator[Finding]:
    try:
        found = shutil.disk_usage("/dev/shm")
    except OSError:
        yield Finding("shared memory", "warning", "there is no /dev/shm", "data.use_shm cannot be used here")
        return
    told = f"{size(found.free)} of {size(found.total)} free in /dev/shm"
    if found.free < LEAST_SHARED:
        yield Finding("shared memory", "warning", told, "docker run --shm-size=8g; data.use_shm needs the token cache")
    else:
        yield Finding("shared memory", "ok", told)


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FEWEST_FILES:
        most = "unlimited" if hard == resource.RLIM_INFINITY else hard
        yield Finding("open files", "warning", f"at most {soft}", f"ulimit -n {FEWEST_FILES} (allowed: {most})")
    else:
        yield Finding("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft}")
    mask = os.umask(0o022)
    os.umask(mask)
    yield Finding("umask", "ok", f"{mask:03o}: {'only you' if mask & 0o044 else 'others'} can read new files")


def _text() -> Iterator[Finding]:
    names, words = sys.getfilesystemencoding(), locale.getpreferredencoding(False)
    if {names.lower(), words.lower()} <= {"utf-8", "utf8"}:
        yield Finding("locale", "ok", "UTF-8")
    else:
        hint = "export LC_ALL=C.UTF-8, or PYTHONUTF8=1"
        yield Finding("locale", "warning", f"files' names are read as {names}, text as {words}", hint)


def _containers() -> Finding:
    found = [name for name in ("apptainer", "singularity", "docker", "podman", "enroot") if shutil.which(name)]
    if found:
        return Finding("containers", "ok", f"on PATH: {', '.join(found)}")
    return Finding("containers", "not here", "no apptainer, singularity, docker, podman or enroot on PATH")

"""Slurm: the clients, the controller, the accounting, and the cluster files."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from evo_core.errors import ConfigError
from flows.doctor.finding import Asked, Finding
from flows.doctor.programs import NoAnswer, answer
from tasks.launch.cluster import SlurmCluster, cluster_names, load_cluster
from tasks.launch.commands import PROGRAMS, SlurmCommands, SlurmRefused, SlurmSilent

_CLIENT_SECONDS = 8.0
_CONFIGURATIONS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")


def look(asked: Asked) -> Iterator[Finding]:
    """The clients and the controller, then every cluster file; those that are named have to be usable."""
    commands = SlurmCommands(timeout=_CLIENT_SECONDS)
    needed, missing = bool(asked.clusters), commands.missing()
    partitions: list[str] | None = None
    if missing:
        none = len(missing) == len(PROGRAMS)
        hint = "run on a login node of the cluster" if none else "install all of Slurm's clients"
        told = f"not on PATH: {', '.join(missing)}"
        yield Finding("slurm", "problem" if needed or not none else "not here", told, hint)
    elif not needed and not _is_configured():
        told = "its clients are on PATH, and nothing says which cluster they are for"
        yield Finding("slurm", "not here", told, "set SLURM_CONF, or run on a login node of the cluster")
    else:
        try:
            commands.ping()
            partitions = commands.partitions()
        except (SlurmSilent, SlurmRefused) as error:
            hint = "check `scontrol ping` and SLURM_CONF"
            yield Finding("slurm", "problem", f"the controller does not answer: {error}", hint)
        else:
            yield Finding("slurm", "ok", f"{_version()}, the controller answers; partitions: {', '.join(partitions)}")
            yield _accounting()
    for name in dict.fromkeys([*asked.clusters, *cluster_names()]):
        yield from _cluster(name, name in asked.clusters, partitions)


def _is_configured() -> bool:
    return "SLURM_CONF" in os.environ or any(Path(file).is_file() for file in _CONFIGURATIONS)


def _version() -> str:
    try:
        return answer(["sinfo", "--version"], _CLIENT_SECONDS, {"LC_ALL": "C"}).strip().removeprefix("slurm ")
    except NoAnswer:
        return "an unknown version"


def _accounting() -> Finding:
    hint = "how a job ended is then told by its own marker and by squeue, which forgets it after MinJobAge"
    if shutil.which("sacct") is None:
        return Finding("accounting", "warning", "there is no sacct here", hint)
    try:
        answer(["sacct", "-X", "-n", "-P", "-o", "JobIDRaw", "-S", "now"], _CLIENT_SECONDS, {"LC_ALL": "C"})
    except NoAnswer as error:
        return Finding("accounting", "warning", str(error), hint)
    return Finding("accounting", "ok", "sacct answers")


def _cluster(name: str, needed: bool, partitions: list[str] | None) -> Iterator[Finding]:
    subject = f"cluster {name}"
    try:
        cluster = load_cluster(name)
        if not isinstance(cluster, SlurmCluster):
            yield Finding(subject, "ok", f"{cluster.file or 'this machine'}")
            return
        faults = list(_faults(cluster, partitions))
    except ConfigError as error:
        yield Finding(subject, "problem", str(error))
        return
    for message, hint in faults:
        yield Finding(subject, "problem" if needed else "warning", message, hint)
    if not faults:
        yield Finding(subject, "ok", f"{cluster.file}: {cluster.partition or 'the default partition'}")


def _faults(cluster: SlurmCluster, partitions: list[str] | None) -> Iterator[tuple[str, str]]:
    try:
        cluster.variables()
    except ConfigError as error:
        yield str(error), "export it before evo run; its value is handed on to the jobs and written nowhere"
    for name in (cluster.partition or "").split(","):
        if name and partitions is not None and name not in partitions:
            yield f"this Slurm has no partition {name!r}", f"it has {', '.join(partitions)}"
    root = cluster.shared_root
    if root is not None and not root.is_dir():
        yield f"shared_root {root} is not there", "it is the folder that every node sees; the store has to be under it"
    elif root is not None and not os.access(root, os.W_OK | os.X_OK):
        yield f"shared_root {root} cannot be written", "take a folder of your own on the shared disk"
    inside = {"container": cluster.container, "python": None if cluster.container else cluster.python}
    for key, text in inside.items():  # an interpreter inside a container cannot be seen from here
        if text and _is_missing(program := shlex.split(text)[0]):
            yield f"{key}: {program} is not here", "it has to be there on the nodes, where `setup` lines may load it"


def _is_missing(program: str) -> bool:
    return not Path(program).exists() if os.sep in program else shutil.which(program) is None

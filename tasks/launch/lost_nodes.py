"""A job that Slurm has put back into its queue because nodes were lost is kept away from them."""

from __future__ import annotations

import re
import time
from pathlib import Path

from evo_core.cause import NODE
from tasks.launch.causes import in_words
from tasks.launch.cluster import SlurmCluster
from tasks.launch.commands import SlurmCommands
from tasks.launch.left_out import LEFT_OUT, leave_out, read_left_out, without
from tasks.launch.record import JobRecord, nodes_path

_GONE = re.compile(r"down|fail|.*\*$")
"""States of nodes that are lost; a star is one that does not answer."""


def keep_away(cluster: SlurmCluster, commands: SlurmCommands, state: Path, record: JobRecord) -> str:
    """Leave out the nodes that a waiting job had and that are lost; returns what to say of it.

    Raises:
        SlurmSilent: no answer.
        SlurmRefused: the job does not wait any more.
    """
    try:
        before = nodes_path(state, record.attempt).read_text().strip()
    except OSError:  # it waits for its first turn, or has given its nodes back itself
        return ""
    known = commands.nodes(cluster.partition)
    lost = [node for node in commands.host_names(before) if _GONE.match(known.get(node, ""))]
    if not lost or record.job_id is None:
        return ""
    words = f"{in_words(NODE)} on {', '.join(lost)}"
    stamp = time.strftime("%Y-%m-%d %H:%M")
    leave_out(state, lost, f"{in_words(NODE)} of job {record.job_id}, {stamp}")
    out, said = excluded_nodes(cluster, commands, state, record.nodes)
    if out:
        commands.exclude(record.job_id, [*cluster.exclude, *out])
    return f"{words}; {said}"


def excluded_nodes(cluster: SlurmCluster, commands: SlurmCommands, state: Path, needed: int) -> tuple[list[str], str]:
    """Nodes of the key's list that a job that needs so many nodes is kept away from, and what to say of it.

    Raises:
        SlurmSilent: no answer.
        SlurmRefused: Slurm said no.
    """
    listed = read_left_out(state)
    if not listed:
        return [], ""
    known = [node for node in commands.nodes(cluster.partition) if node not in cluster.exclude]
    out, said = without(known, list(listed), needed)
    return out, f"{said} (see {state / LEFT_OUT}; without its line there a node is allowed again)" if out else said

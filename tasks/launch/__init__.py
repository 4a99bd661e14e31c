"""Launching commands on this machine or on a Slurm cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.launch.launcher import Launcher, LaunchRuntime

__all__ = ["launcher_for"]


def launcher_for(runtime: LaunchRuntime) -> Launcher:
    """The launcher of the cluster that a runtime names.

    Raises:
        ConfigError: there is no such cluster, its file is wrong, or it cannot give what the runtime asks for.
    """
    from evo_core.errors import ConfigError
    from tasks.launch.cluster import LocalCluster, load_cluster
    from tasks.launch.local import LocalLauncher
    from tasks.launch.slurm import SlurmLauncher

    cluster = load_cluster(runtime.cluster)
    if not isinstance(cluster, LocalCluster):
        if cluster.gpus == "gpus_per_task" and cluster.launch == "srun" and runtime.gpus_per_node % runtime.ranks:
            raise cluster.error(
                f"{runtime.gpus_per_node} GPUs a node cannot be dealt out to {runtime.ranks} ranks, one task each",
                key="gpus",
                hint="set runtime.ranks_per_node to a divisor of gpus_per_node",
            )
        return SlurmLauncher(cluster)
    if runtime.nodes > 1:
        raise ConfigError(
            f"{runtime.nodes} nodes were asked for, and cluster {cluster.name!r} is this machine alone",
            key="runtime.nodes",
            hint="set it to 1 and use ranks_per_node, or name a Slurm cluster",
        )
    return LocalLauncher(cluster)

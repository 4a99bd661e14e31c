"""Whether Slurm takes a job at all: asked with `sbatch --test-only` before work starts, explained where it does not.

Only what no waiting mends refuses a run before it starts. A limit on how many jobs somebody may have in the queue, or a
node that is down today, may be otherwise by the time the job is submitted.
"""

from __future__ import annotations

import re
from pathlib import Path

from tasks.launch.cluster import SlurmCluster
from tasks.launch.commands import SlurmCommands, SlurmRefused, SlurmSilent
from tasks.launch.launcher import Job, LaunchRuntime
from tasks.launch.script import sbatch_arguments

_PERMANENT = (
    (r"invalid account", "account", "`sacctmgr show assoc user=$USER` lists the accounts that are yours"),
    (r"invalid qos", "qos", "`sacctmgr show assoc user=$USER format=account,qos` lists those that are yours"),
    (r"partition (specified|name)|group not permitted|permission denied", "partition", "`sinfo -s` lists partitions"),
    (r"invalid feature", "sbatch_args", "`sinfo -o '%N %f'` lists the features of the nodes"),
    (r"time limit is invalid", None, "`sinfo -o '%P %l'` lists the longest runtime.time of each partition"),
    (r"generic resource|invalid gres|invalid trespernode", "gpus", "`sinfo -o '%N %G'` lists the GPUs of the nodes"),
)
"""Slurm's words, the key of the cluster file that they are about, what to do."""

_LIMIT = re.compile(r"violates accounting/qos policy|limit", re.IGNORECASE)


def explained(said: str) -> tuple[str | None, str] | None:
    """The key and the hint for a refusal that is final, None for any other."""
    return next(((key, hint) for words, key, hint in _PERMANENT if re.search(words, said, re.IGNORECASE)), None)


def check_accepted(cluster: SlurmCluster, commands: SlurmCommands, runtime: LaunchRuntime) -> None:
    """Ask whether Slurm would take a job of this kind. Says nothing where it gives no clear answer.

    Raises:
        ConfigError: it never would.
    """
    job = Job("evo-test-only", "this", (), Path("state"), Path("log"), runtime, attempt=1)
    try:
        commands.test(sbatch_arguments(cluster, job, job.name))
    except SlurmSilent:
        return
    except SlurmRefused as refused:
        if found := explained(str(refused)):
            raise cluster.error(f"Slurm would refuse the job: {refused}", key=found[0], hint=found[1]) from None


def hint_for(cluster: SlurmCluster, said: str, script: Path) -> tuple[str | None, str]:
    """The key and the hint for any refusal of `sbatch`."""
    if found := explained(said):
        return found
    if _LIMIT.search(said):
        return (
            None,
            "a limit of your account or qos: wait until other jobs have ended, or name another under account, qos",
        )
    return None, f"see {cluster.name}'s keys, and the script {script}"

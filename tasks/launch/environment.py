"""The environment that a job begins with: the run's own, without what says where *the run* stands.

A run may itself sit inside a Slurm allocation, an interactive `srun` shell or under torchrun. A job that inherited
those variables would take itself for a rank of something else, and `sbatch` would take them for options.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

KEPT = {"SLURM_CONF", "SLURM_JWT"}
"""How clients find a Slurm cluster and show who they are."""

_PLACE = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_NAME", "ROLE_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "EVO_DIE_WITH_PARENT",
}  # fmt: skip
_OF_THE_SCRIPT = {
    "state", "exit_file", "attempt", "log", "excluded", "stalled_tries", "on_walltime", "saving_seconds", "started",
    "reason", "walltime", "terminated", "interrupted", "requeued", "settingup", "code", "command", "on_each_node",
    "address", "port", "ranks", "killer", "restarts", "without_progress", "step", "now", "before", "why", "EVO_NODES",
    "most", "words", "killed_for_memory", "node_lost", "rank_killed", "then_ended", "log_before", "cause", "where",
    "lost", "node", "all", "out", "left", "nodes_before", "job", "key_state",
}  # fmt: skip
SET_BY_EVO = _PLACE | _OF_THE_SCRIPT | {"EVO_JOB_FOLDER"}
"""Variables that a cluster file cannot set: a rank's place, and those of the batch script."""
_PREFIXES = ("SLURM_", "SLURMD_", "TORCHELASTIC_", "PET_", "PMI_", "PMIX_")
_FOR_A_PERSON = ("SQUEUE_", "SACCT_", "SINFO_", "SCONTROL_", "SCANCEL_")
"""Begin what a person sets for their own use of the clients: filters that would hide a job, another form, questions."""
_OWN_SUBMISSION = {
    "SBATCH_WAIT",
    "SBATCH_ARRAY_INX",
    "SBATCH_CLUSTERS",
    "SBATCH_ERROR",
    "SBATCH_INPUT",
    "SRUN_OUTPUT",
    "SRUN_ERROR",
    "SRUN_INPUT",
}
"""Would change what is submitted and no option of ours takes back; what names an account or a constraint may stay."""


def clean_environment() -> dict[str, str]:
    """This process's environment without its own place in a job, and without settings of Slurm's clients that would
    make them do or say something else than they are asked."""
    return {name: value for name, value in os.environ.items() if name in KEPT or not _misleads(name)}


def job_variables(state: str, threads: int, given: Mapping[str, str]) -> dict[str, str]:
    """What the launcher adds for every job; `given` (the cluster's and the job's own) comes on top.

    Args:
        state: the job folder, where the command leaves its progress and its error.
        threads: cores that one rank may use.
    """
    return {
        "EVO_JOB_FOLDER": state,
        "PYTHONUNBUFFERED": "1",  # lines are followed as they are printed
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        **given,
    }


def _misleads(name: str) -> bool:
    return name in _PLACE or name in _OWN_SUBMISSION or name.startswith((*_PREFIXES, *_FOR_A_PERSON))

"""What the words of a recorded run must not hold: the values that its pipeline has from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evo_core.config.secrets import Secrets
from evo_core.errors import UserError


def secrets_of_run(record: Mapping[str, Any]) -> Secrets:
    """The secrets of a run, as far as they can be told: from its pipeline's file and clusters of now, and this
    environment. What a job itself printed is shown as it is where the variable is not set here."""
    texts: dict[str, str] = {}
    from flows.pipeline.overrides import read_steps
    from tasks.launch.cluster import load_cluster

    try:
        document, _, _ = read_steps(record["file"], record.get("set", ()))
        texts |= document.resolved(lambda key: False).secrets.texts
    except (KeyError, UserError, OSError):
        pass  # the file has gone, or has become another
    for name in {step.get("runtime", {}).get("cluster") for step in record.get("steps", ())} - {None}:
        try:
            cluster = load_cluster(name)
            values = cluster.variables()
            texts |= {values[key]: f"${{oc.env:{key}}}" for key in cluster.references()}
        except (UserError, OSError):
            continue
    return Secrets({}, texts)

"""Nodes that the jobs of a key are kept away from, because one of them was lost there.

``left-out.txt`` in the key's state folder has a line for each: the node and why. The batch script adds to it, and so
does whoever follows a job that Slurm itself has put back into the queue. Who takes a line out allows its node again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

LEFT_OUT = "left-out.txt"


def read_left_out(state: Path) -> dict[str, str]:
    """Nodes by name, each with why it is left out."""
    try:
        lines = (state / LEFT_OUT).read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {node: why for node, _, why in (line.partition(" ") for line in lines) if node}


def leave_out(state: Path, nodes: Iterable[str], why: str) -> list[str]:
    """Add nodes; returns those that were not left out before."""
    known = read_left_out(state)
    new = [node for node in nodes if node not in known]
    if new:
        with (state / LEFT_OUT).open("a") as file:
            file.writelines(f"{node} {why}\n" for node in new)
    return new


def without(known: Collection[str], excluded: Collection[str], needed: int) -> tuple[list[str], str]:
    """Of the nodes to be left out those that can be, and what to say of it.

    All or none: where too few nodes would be left, a job would wait for ever without them.

    Args:
        known: the nodes that the job could get.
        excluded: the nodes to leave out.
        needed: how many the job asks for.
    """
    out = [node for node in excluded if node in known]  # Slurm refuses a node that was taken away from it
    left = len(set(known) - set(out))
    if not out:
        return [], ""
    if left < needed:
        return [], f"{', '.join(out)} cannot be left out: the job needs {needed} nodes, and {left} would remain"
    return out, f"left out from now on: {', '.join(out)}"

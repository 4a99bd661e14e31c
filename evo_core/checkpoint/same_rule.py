"""Whether the optimizer states of a checkpoint are of the optimizer that is to go on with them, as their names tell."""

from __future__ import annotations

from collections.abc import Collection

from evo_core.checkpoint.allowed import Allow
from evo_core.errors import CheckpointError
from evo_core.storage.location import Location

_OF = {"exp_avg": "adamw", "momentum": "muon"}
"""The `optimizer.name` by the kind of state that each parameter has one of: ``exp_avg.<name>``."""


def check_rule(folder: Location, stored: Collection[str], wanted: Collection[str], allow: Allow | None) -> None:
    """Refuse to go on by another rule than the one that has updated a parameter.

    Args:
        stored: names of the states in the checkpoint.
        wanted: those that the optimizer has.
        allow: what tells how the start was asked for; None for a run that is gone on with.

    Raises:
        CheckpointError: a parameter has moments of Adam's there and is Muon's here, or the other way round.
    """
    there = {name: rule for each in stored for name, rule in _rule_of(each)}
    for each in wanted:
        for name, rule in _rule_of(each):
            if there.get(name, rule) != rule:
                message = f"{rule} here, and the states of {name} there are {there[name]}'s"
                raise CheckpointError(message, file=folder, key="optimizer.name", hint=_hint(there, allow))


def _rule_of(state: str) -> list[tuple[str, str]]:
    """The parameter of a state and what updates it, where the state tells."""
    kind, _, name = state.partition(".")
    return [(name, _OF[kind])] if kind in _OF else []


def _hint(there: dict[str, str], allow: Allow | None) -> str:
    name = "muon" if "muon" in there.values() else "adamw"
    if allow is not None and allow.as_options:
        return f"write {name}, or take the weights alone: --init-content model"
    return (
        f"write {name}, or start from its weights alone: ckpt.auto_resume false, "
        'ckpt.load_ckpt_info {path: ..., content: ["model"]}'
    )

"""From the steps that are written to the steps that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any

from evo_core.config import references
from evo_core.config.resolve import Document
from flows.pipeline.foreach.names import instance_names
from flows.pipeline.foreach.tables import NoTable, Row, first_without_match, joined, positions, shown, table, values
from flows.pipeline.foreach.values import VALUES, refuse_values, with_values, without_values


@dataclass(frozen=True)
class Sweep:
    """What one written step became: the names of its steps in order, and the row of each."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def variables(self) -> set[str]:
        """Names of its variables."""
        return set(self.rows[0])

    def with_row(self, row: Row) -> str:
        """The step that has the row's values."""
        return self.names[self._positions[values(row, list(self.rows[0]))]]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return positions(self.rows)


Sweeps = Mapping[str, Sweep]


def expand(document: Document) -> dict[str, tuple[str, ...]]:
    """Put the steps of every foreach in the place of the step that has it, and of those that follow it.

    Returns:
        the name of each step that was written to the names of those that it became.

    Raises:
        ConfigError: with the file's line: no list of values, none or too many, a variable that is not there, sweeps
            of which it is not said how they go together, a value from the environment.
    """
    steps = document.data.get("steps")
    if not isinstance(steps, dict) or not any(isinstance(step, dict) and "foreach" in step for step in steps.values()):
        if isinstance(steps, dict):
            refuse_values(document, document.data, "no step has a foreach")
        return {}
    if VALUES in document.data:
        raise document.error("this name is taken: ${each.NAME} is a value of a step's foreach", VALUES)
    plain = without_values(document)["steps"]
    sweeps: dict[str, Sweep] = {}
    for name in _in_order(document, plain):
        if (rows := _rows(document, name, plain[name], sweeps)) is not None:
            sweeps[name] = Sweep(instance_names(name, rows), tuple(rows))
    _put_in_place(document, steps, plain, sweeps)
    return {name: sweep.names for name, sweep in sweeps.items()}


def _in_order(document: Document, steps: Mapping[str, Any]) -> list[str]:
    """The steps' names, each after those it needs."""
    graph = {name: [need for need in _needs(step).values() if need in steps] for name, step in steps.items()}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = error.args[1]
        message = f"the steps wait for each other in a circle: {' -> '.join(circle)}"
        raise document.error(message, f"steps.{circle[0]}.needs") from error


def _needs(step: Any) -> dict[str, str]:
    needs = step.get("needs") if isinstance(step, dict) else None
    return {k: v for k, v in needs.items() if isinstance(v, str)} if isinstance(needs, dict) else {}


def _rows(document: Document, name: str, step: Any, sweeps: Sweeps) -> list[Row] | None:
    """The rows of a step; None where it stays one step."""
    followed = {need: sweeps[need] for need in _needs(step).values() if need in sweeps}
    where = f"steps.{name}.foreach"
    try:
        own = table(step["foreach"]) if isinstance(step, dict) and "foreach" in step else None
        if not followed:
            return own
        where = where if own else f"steps.{name}.needs"
        _check_going_together(document, name, followed, own[0] if own else {})
        rows = _followed_rows(followed, must_match=own is None)
        if own is None:
            return rows
        if unmatched := first_without_match(own, rows):
            raise NoTable(f"{' and '.join(followed)} has no step with {shown(unmatched)}")
        return joined(rows, own)
    except NoTable as wrong:
        raise document.error(wrong.message, ".".join(filter(None, [where, wrong.inside])), wrong.hint) from None


def _followed_rows(followed: Sweeps, must_match: bool) -> list[Row]:
    """The rows of the sweeps that a step needs, joined: the one with most variables leads."""
    rows: Sequence[Row] = [{}]
    for need, sweep in sorted(followed.items(), key=lambda item: -len(item[1].variables)):
        if must_match and (unmatched := first_without_match(rows, sweep.rows)):
            raise NoTable(f"{need} has no step with {shown(unmatched)}")
        rows = joined(rows, sweep.rows)
    return list(rows)


def _check_going_together(document: Document, name: str, followed: Sweeps, own: Row) -> None:
    """One of the sweeps that a step needs has all variables of the others, or its own foreach has them: else nobody
    has said which of their steps belong together."""
    variables = {variable for sweep in followed.values() for variable in sweep.variables}
    if variables <= set(own) or any(sweep.variables == variables for sweep in followed.values()):
        return
    told = "; ".join(f"{need}: {', '.join(sweep.rows[0])}" for need, sweep in followed.items())
    raise document.error(
        f"it needs several sweeps, and which of their steps go together is not said ({told})",
        f"steps.{name}.needs",
        f"give it a foreach with {', '.join(sorted(variables))}, or name single steps",
    )


def _put_in_place(document: Document, steps: Mapping[str, Any], plain: Mapping[str, Any], sweeps: Sweeps) -> None:
    """Lay the expanded steps, their values and the places of their lines into the document."""
    expanded: dict[str, Any] = {}
    block: list[Any] = []
    places = _places(document, sweeps)
    for name, step in steps.items():
        if name not in sweeps:
            refuse_values(document, {"steps": {name: step}}, "this step has no foreach, and needs none that has")
            expanded[name] = step
            continue
        for instance, row in zip(sweeps[name].names, sweeps[name].rows, strict=True):
            if instance in expanded or instance in steps:
                message = f"a step of its foreach would be called {instance!r}, as another step is"
                raise document.error(message, f"steps.{name}")
            own = {key: sweeps[need].with_row(row) for key, need in _needs(plain[name]).items() if need in sweeps}
            known = {need: own[key] for key, need in _needs(plain[name]).items() if key in own}
            expanded[instance] = with_values(document, name, step, row, len(block), {name: instance, **known})
            if own:
                expanded[instance]["needs"] |= own
            block.append(references.as_literal(row))
            document.places.update({f"steps.{instance}{inside}": place for inside, place in places[name].items()})
    outside = {key: value for key, value in document.data.items() if key != "steps"}
    refuse_values(document, outside, "it is no part of a step")
    _refuse_sweeps(document, {**outside, "steps": expanded}, sweeps)
    document.data = {**outside, "steps": expanded, VALUES: block}


def _places(document: Document, sweeps: Sweeps) -> dict[str, dict[str, Any]]:
    """Of each sweep, where its keys were written: by the end of the key, which begins with a dot or is empty."""
    places: dict[str, dict[str, Any]] = {name: {} for name in sweeps}
    for key, place in document.places.items():
        block, _, rest = key.partition(".")
        name = rest.partition(".")[0]
        if block == "steps" and name in places:
            places[name][key.removeprefix(f"steps.{name}")] = place
    return places


def _refuse_sweeps(document: Document, data: Mapping[str, Any], sweeps: Sweeps) -> None:
    """Where one step is meant, a sweep's name says too little: in `publish`, and in references to a step's values."""
    publish = data.get("publish")
    named = [(f"publish.{ref}", step) for ref, step in (publish.items() if isinstance(publish, dict) else ())]
    named += [(key, step) for key, text in references.strings(data) for step in _steps_in(text)]
    for key, step in named:
        if isinstance(step, str) and step in sweeps:
            names = sweeps[step].names
            hint = f"name one of them: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
            raise document.error(f"{step!r} is a sweep of {len(names)} steps, and this means one", key, hint)


def _steps_in(text: str) -> list[str]:
    """The steps whose values a text refers to."""
    if "${" not in text:
        return []
    parts = [name.replace("[", ".").split(".") for name in references.named([text])]
    return [part[1] for part in parts if part[0] == "steps" and len(part) > 1]


def forget_rows(data: dict[str, Any]) -> None:
    """Take the rows out of a document's resolved data."""
    data.pop(VALUES, None)

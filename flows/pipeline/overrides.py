"""A pipeline file with ``KEY=VALUE`` overrides laid over it, and its foreach carried out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evo_core.config.resolve import Document, read_document
from evo_core.config.suggest import suggest
from evo_core.errors import ConfigError
from flows.pipeline import foreach
from tasks.params.names import composed


def read_steps(path: str | Path, overrides: Sequence[str]) -> tuple[Document, list[str], dict[str, tuple[str, ...]]]:
    """The document with every step that there is; the overrides; the sweeps: written name to names of their steps.

    What is set for a written step holds for all that its foreach makes. What is set for a step that only the foreach
    makes is laid over that one step, after it.
    """
    document = read_document(path)
    _compose_names(document)
    overrides = [_with_composed_name(override) for override in overrides]
    written = {*_steps(document), *(name for name, inside in map(_step_of, overrides) if inside in ("", "uses"))}
    later = [override for override in overrides if _step_of(override)[0] not in {"", *written}]
    document.override([override for override in overrides if override not in later])
    _compose_names(document)
    known = _steps(document)
    sweeps = foreach.expand(document)
    for override in later:
        if _step_of(override)[1].partition(".")[0] == "foreach":
            raise ConfigError("one step of a sweep has no foreach; set that of the whole", key=f"--set {override}")
    document.override(later)
    _refuse_unknown_steps(overrides, {**known, **_steps(document)})
    return document, overrides, sweeps


def _steps(document: Document) -> dict[str, Any]:
    steps = document.data.get("steps")
    return steps if isinstance(steps, dict) else {}


def _step_of(override: str) -> tuple[str, str]:
    """The step that an override names, and the key inside it; empty where there is none."""
    first, _, rest = override.partition("=")[0].strip().partition(".")
    name, _, inside = rest.partition(".")
    return (name, inside) if first == "steps" else ("", "")


def _refuse_unknown_steps(overrides: Sequence[str], steps: dict[str, Any]) -> None:
    """An override inside a step that the file does not have would begin one of its own."""
    known = [name for name, step in steps.items() if isinstance(step, dict) and "uses" in step]
    for override in overrides:
        name, inside = _step_of(override)
        if inside and steps and name not in known:
            raise ConfigError(f"there is no step {name!r}{suggest(name, known)}", key=f"--set {override}")


def _compose_names(document: Document) -> None:
    for block in ("steps", "publish"):
        if isinstance(named := document.data.get(block), dict):
            names = Counter(map(composed, named))
            if twice := next((name for name in named if names[composed(name)] > 1), None):
                hint = "they look the same and differ in how their accents are written"
                raise document.error(f"two of its names are {composed(twice)!r}", f"{block}.{twice}", hint)
            document.data[block] = {composed(name): value for name, value in named.items()}
    document.places = {composed(key): place for key, place in document.places.items()}


def _with_composed_name(override: str) -> str:
    """An override whose step or ref is named as the document names it."""
    key, equals, value = override.partition("=")
    block, *inside = key.split(".", 2)
    if block.strip() in ("steps", "publish") and inside:
        inside[0] = composed(inside[0])
    return ".".join([block, *inside]) + equals + value

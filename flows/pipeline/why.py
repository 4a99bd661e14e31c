"""Why a step has to run: what is different from the nearest artifact made before."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

from tasks.store import Artifact, Store


def explain_change(step: str, kind: str, payload: Mapping[str, Any], store: Store, others: Container[str]) -> str:
    """One line: the difference to the nearest earlier artifact of this step, or that there is none."""
    before = nearest(step, kind, payload, store, others)
    if before is None:
        return "never made before"
    changes = list(differences(before.manifest["identity"], payload))
    return "; ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")


def nearest(step: str, kind: str, payload: Mapping[str, Any], store: Store, others: Container[str]) -> Artifact | None:
    """The earlier artifact of this step and kind with the fewest differences, the newest among equals.

    Args:
        others: the pipeline's steps. A step that has made nothing under its name may have made what no step of these
            names claims: it was renamed.
    """
    best: tuple[bool, int, Artifact] | None = None
    for artifact in store.artifacts():
        manifest = artifact.manifest
        renamed = manifest["step"] != step
        if manifest["kind"] != kind or manifest["identity"] == payload or (renamed and manifest["step"] in others):
            continue
        distance = sum(1 for _ in differences(manifest["identity"], payload))
        if best is None or (renamed, distance) <= best[:2]:
            best = renamed, distance, artifact
    return best and best[2]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Every field that differs between two identity payloads, as ``name: old -> new``."""
    old, new = dict(_flat(before)), dict(_flat(now))
    for name in sorted(old | new):
        if old.get(name) == new.get(name):
            continue
        label = name.removeprefix("params.")
        if name == "source":
            yield "the raw data changed"
        elif name.startswith("inputs."):
            yield f"the input {name.removeprefix('inputs.')} changed"
        else:
            yield f"{label}: {_short(old.get(name, 'default'))} -> {_short(new.get(name, 'default'))}"


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(item, f"{at}.{name}" if at else name)
    else:
        yield at, value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"

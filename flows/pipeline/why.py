"""Why a step has to run: what is different from the nearest artifact made before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tasks.store import Artifact, Store


class Earlier:
    """The artifacts that were made before, read once for all steps of a plan, and only if one of them runs.

    Args:
        steps: the pipeline's. A step that has made nothing under its name may have made what no step of these names
            claims: it was renamed.
    """

    def __init__(self, store: Store, steps: Iterable[str]) -> None:
        self._store, self._steps = store, frozenset(steps)

    def explain(self, step: str, kind: str, payload: Mapping[str, Any]) -> str:
        """One line: the difference to the nearest earlier artifact of this step, or that there is none."""
        before = self.nearest(step, kind, payload)
        if before is None:
            return "never made before"
        changes = list(differences(before.manifest["identity"], payload))
        return "; ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")

    def nearest(self, step: str, kind: str, payload: Mapping[str, Any]) -> Artifact | None:
        """The earlier artifact of this step and kind with the fewest differences, the newest among equals."""
        now = dict(_flat(payload))
        best: tuple[int, Artifact] | None = None
        for made in self._others((kind, step), payload) or self._others((kind, None), payload):
            distance = sum(made.fields.get(name) != now.get(name) for name in made.fields.keys() | now.keys())
            if best is None or distance <= best[0]:
                best = distance, made.artifact
        return best and best[1]

    def _others(self, of: tuple[str, str | None], payload: Mapping[str, Any]) -> list[_Made]:
        """What a kind and step have made that is something else, the newest last."""
        return [made for made in self._made.get(of, ()) if made.artifact.manifest["identity"] != payload]

    @cached_property
    def _made(self) -> dict[tuple[str, str | None], list[_Made]]:
        """By kind and step; under None those of steps that the pipeline does not have."""
        found: dict[tuple[str, str | None], list[_Made]] = {}
        for artifact in self._store.artifacts():
            manifest = artifact.manifest
            step = manifest["step"] if manifest["step"] in self._steps else None
            made = _Made(artifact, dict(_flat(manifest["identity"])))
            found.setdefault((manifest["kind"], step), []).append(made)
        return found


@dataclass(frozen=True)
class _Made:
    artifact: Artifact
    fields: dict[str, Any]


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

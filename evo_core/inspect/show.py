"""Checkpoints as people read them: a line each, or one from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from evo_core.checkpoint.about import About
from evo_core.checkpoint.manifest import Manifest
from evo_core.errors import printable
from evo_core.inspect.look import Checkpoint

_HEAD = ("checkpoint", "state", "tokens", "loss", "size", "saved", "run", "job")
_NUMBERS = (2, 3, 4)
"""Columns that stand at the right."""


def list_of(checkpoints: Sequence[Checkpoint]) -> str:
    """A line each, and under them why some were not read."""
    rows = [_HEAD, *map(_row, checkpoints)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(_cell, range(len(row)), row, widths)).rstrip() for row in rows]
    lines += [f"{each.name}: {printable(each.problem)}" for each in checkpoints if each.problem is not None]
    return "\n".join(lines)


def _cell(column: int, text: str, width: int) -> str:
    return text.rjust(width) if column in _NUMBERS else text.ljust(width)


def _row(checkpoint: Checkpoint) -> tuple[str, ...]:
    known, run = checkpoint.manifest, checkpoint.run
    return (
        checkpoint.name,
        checkpoint.state,
        "-" if known is None else f"{known.tokens:,}",
        "-" if checkpoint.loss is None else f"{checkpoint.loss:.4f}",
        "-" if checkpoint.nbytes is None else _size(checkpoint.nbytes),
        "-" if run is None else _when(run.saved),
        "-" if run is None else printable(run.id[:8]) or "-",
        "-" if run is None else printable(run.job) or "-",
    )


def facts_of(checkpoint: Checkpoint) -> str:
    """Everything about one, a fact a line."""
    facts = list(_facts(checkpoint))
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{printable(name).ljust(width)}  {printable(value)}" for name, value in facts)


def _facts(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    manifest, run = checkpoint.manifest, checkpoint.run
    yield "checkpoint", str(checkpoint.location)
    yield "state", ": ".join(filter(None, (checkpoint.state, checkpoint.problem)))
    if run is not None:
        yield "run", f"{run.id or '-'} ({run.job or '-'})"
        yield "saved", _when(run.saved)
    if manifest is None:
        return
    yield "step", f"{manifest.step:,}"
    yield "tokens", f"{manifest.tokens:,}"
    yield "size", f"{_size(checkpoint.nbytes or 0)} in {len(manifest.files)} files, format {manifest.format}"
    yield "written by", ", ".join(f"{name} {value}" for name, value in manifest.written_by.items()) or "-"
    if manifest.about is None:
        return
    yield from _about(manifest.about, manifest)


def _about(about: About, manifest: Manifest) -> Iterator[tuple[str, str]]:
    changes = {True: ", with changes", False: "", None: ""}[about.modified]
    yield "Evo", f"{about.evo or '-'}, {f'commit {about.commit}{changes}' if about.commit else 'no repository'}"
    yield "identity", about.identity_digest or "- (one came from the environment)"
    yield "settings", about.settings_digest
    yield "data", about.train_folder or "-"
    yield "dataset", about.dataset or f"- ({about.no_dataset})"
    yield "data order", manifest.data_digest
    yield "layout", ", ".join(f"{name} {value}" for name, value in about.layout.items())
    if "step" in about.metrics:
        yield "measured", f"in step {about.metrics['step']}, counted from 0"
    for name, value in about.metrics.items():
        if name not in ("step", "time"):
            yield f"  {name}", _number(value)


def _number(value: float | str | bool | None) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else f"{value:,}" if type(value) is int else str(value)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.3f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.3f} MB"


def _when(saved: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(saved)) if saved else "-"

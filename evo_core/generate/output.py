"""What generation writes: samples.jsonl for programs, samples.md for people, token files for token prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evo_core.data.shards.format import BinWriter
from evo_core.generate.continuation import Generation
from evo_core.storage.files import below, copy_file, write_file
from evo_core.storage.location import Location, is_remote, local_path

_LAST = "samples.jsonl"


def write_samples(folder: Location, sets: Sequence[tuple[str | None, Sequence[Generation]]]) -> None:
    """Write all results into a folder.

    ``samples.jsonl`` has a line per prompt: prompt, text, ids, finished, prompt_ids, and error where there was one.
    ``samples.md`` shows the same to read. A set with a name also gets ``<name>.bin`` and its meta with prompt and
    continuation in one document each. Every file appears when it is complete, ``samples.jsonl`` last.
    """
    if is_remote(folder):
        with TemporaryDirectory(prefix="evo-") as scratch:
            write_samples(Path(scratch), sets)
            for path in sorted(Path(scratch).iterdir(), key=lambda path: (path.name == _LAST, path.name)):
                copy_file(path, below(folder, path.name))
        return
    folder = local_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, generations in sets:
        if name is not None:
            with BinWriter(folder / f"{name}.bin") as writer:
                for generation in generations:
                    writer.write([*generation.prompt_ids, *generation.ids])
    every = [generation for _, generations in sets for generation in generations]
    write_file(folder / "samples.md", markdown(every))
    write_file(folder / _LAST, "".join(json.dumps(_line(g), ensure_ascii=False) + "\n" for g in every))


def markdown(generations: Sequence[Generation]) -> str:
    """A page with each prompt and what the model wrote after it."""
    parts = ["# Samples\n"]
    for number, generation in enumerate(generations, 1):
        end = generation.error or ("finished" if generation.finished else "stopped at the length limit")
        parts.append(f"\n## {number}\n\n{_fenced(generation.prompt)}\n")
        parts.append(f"continued with {len(generation.ids)} tokens, {end}:\n\n{_fenced(generation.text)}")
    return "".join(parts)


def _line(generation: Generation) -> dict[str, Any]:
    line = asdict(generation)
    if line["error"] is None:
        del line["error"]
    return line


def _fenced(text: str) -> str:
    """A code block that no backticks in the text can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}\n"

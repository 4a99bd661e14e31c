"""What is imported by commands that need little: nothing that takes longer than they do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.jobs import write_job

TORCH = {"torch", "numpy", "transformers", "tensorboard", "sentencepiece", "tokenizers"}
SERVERS = {"prefect", "fastapi", "uvicorn", "sqlalchemy", "dask", "s3fs", "boto3", "botocore", "httpx"}
CHECKED = {"omegaconf", "yaml", "rich"}  # typer itself imports pydantic for a command with arguments
COMPILER = {"torch._dynamo", "torch._inductor", "torch.onnx", "sympy", "torch.distributed.fsdp"}

PIPELINE = "pipeline: p\nsteps: {raw: {uses: source.files, params: {root: ., include: ['*.txt']}}}\n"


def imported(code: str, folder: Path, *words: str) -> set[str]:
    """The modules there are after Python code in a process of its own; ``sys.argv[1:]`` are the words."""
    whole = f"import sys\ntry:\n    {code}\nfinally:\n    print('modules', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", whole, *words], cwd=folder, capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.rpartition("modules ")[2].split())


@pytest.mark.parametrize(
    ("words", "unwanted"),
    [
        (["--help"], TORCH | SERVERS | CHECKED | {"pydantic"}),
        (["run", "--help"], TORCH | SERVERS | CHECKED),
        (["train", "--help"], TORCH | SERVERS | CHECKED),
        (["data", "--help"], TORCH | SERVERS | CHECKED),
        (["dag", "one.yaml"], TORCH | SERVERS | {"rich"}),
        (["plan", "one.yaml", "--root", "store"], (TORCH | SERVERS) - {"numpy"}),
    ],
    ids=["evo", "run", "train", "data", "dag", "plan"],
)
def test_commands_that_read_little(words: list[str], unwanted: set[str], tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(PIPELINE)
    (tmp_path / "a.txt").write_text("a text\n")
    found = imported("from flows.cli import main; main()", tmp_path, *words)
    assert found & unwanted == set()


def test_a_training_run_comes_to_its_loop_without_torchs_compiler(tmp_path: Path) -> None:
    write_job(tmp_path)
    loop = (
        "import evo_core.train.loop, evo_core.train.start, evo_core.parallel.process_group, evo_core.generate.command"
    )
    model = "from evo_core.config import load_config; from evo_core.model import build_model"
    built = "build_model(load_config(sys.argv[1]).model)"
    found = imported(f"{loop}; {model}; {built}", tmp_path, str(tmp_path / "job.yaml"))
    assert "torch" in found
    assert found & (COMPILER | SERVERS | {"transformers", "tensorboard"}) == set()

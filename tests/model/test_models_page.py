"""docs/models.md does what it says: its code runs, and its model type of one's own is trained."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evo_core.checkpoint import load_model
from evo_core.config import load_config
from evo_core.model import build_model, known_model_types
from tests.ranks import run_on_ranks
from tests.train.processes import Command

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
SNIPPET, TRIGRAM = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
(JOB,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
(COMMAND,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
(ENTRY_POINT,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def run(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(arguments, cwd=folder, env=variables, capture_output=True, text=True, timeout=240)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder that holds the page's package and its job."""
    (tmp_path / "my_models").mkdir()
    (tmp_path / "my_models" / "__init__.py").touch()
    (tmp_path / "my_models" / "trigram.py").write_text(TRIGRAM)
    (tmp_path / "trigram.yaml").write_text(JOB)
    return tmp_path


def train(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variable, *command = COMMAND.split()
    assert (variable, command[0]) == ("PYTHONPATH=.", "python")
    return run([sys.executable, *command[1:], *arguments], folder, **{"PYTHONPATH": ".", **environment})


def test_the_first_example_prints_what_its_comment_says() -> None:
    result = run([sys.executable, "-c", SNIPPET], ROOT)
    assert result.returncode == 0, result.stderr
    (expected,) = re.findall(r"print\(.*# ([\d,]+)$", SNIPPET, re.MULTILINE)
    assert result.stdout.strip() == expected


def test_a_model_type_of_ones_own_is_trained_and_resumed_and_loaded(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(package)
    monkeypatch.syspath_prepend(str(package))
    first = train(package)
    assert first.returncode == 0, first.stderr
    assert "model my_models.trigram:Trigram: 57,504 parameters" in first.stdout + first.stderr
    (record,) = package.glob("RUN/trigram/*/metrics.jsonl")
    steps = [json.loads(line) for line in record.read_text().splitlines()]
    assert [step["step"] for step in steps] == [0, 1, 2, 3, 4]
    assert steps[0]["loss"] == pytest.approx(6.24, abs=0.1)  # ln 512
    assert all(step["tflops"] is None for step in steps)

    command = Command(["--config", "trigram.yaml", "--set", "data.total_steps=6"], package / "log")
    assert command.wait() == [0], command.log.read_text()
    assert [json.loads(line)["step"] for line in record.read_text().splitlines()] == [0, 1, 2, 3, 4, 5]

    def loaded() -> tuple[str, tuple[int, ...]]:
        model: Any = load_model("checkpoints")[0]
        return type(model).__name__, tuple(model.now.weight.shape)

    assert run_on_ranks(loaded, 1) == [("Trigram", (512, 32))]


@pytest.mark.slow
def test_it_is_trained_over_tensor_ranks(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the losses of one process, which also goes on from the checkpoint of two ranks."""
    monkeypatch.chdir(package)
    monkeypatch.syspath_prepend(str(package))
    job = ["--config", "trigram.yaml", "--set", "model.dtype=torch.float64", "--set", "lr_scheduler.total_steps=5"]

    def curve(name: str, steps: int, ranks: int) -> list[tuple[float, float]]:
        own = ["--folder", name, "--set", f"ckpt.save_ckpt_folder=local:ckpt-{name}"]
        own += ["--set", f"data.total_steps={steps}", "--set", f"parallel.tensor.size={ranks}"]
        command = Command([*job, *own], package / f"log-{name}", ranks=ranks)
        assert command.wait() == [0] * ranks, command.log.read_text()
        records = [json.loads(line) for line in (package / name / "metrics.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records] == list(range(steps))
        return [(record["loss"], record["grad_norm"]) for record in records]

    alone = curve("alone", steps=5, ranks=1)
    assert curve("shared", steps=3, ranks=2) == [pytest.approx(step, rel=1e-12) for step in alone[:3]]
    assert curve("shared", steps=5, ranks=1) == [pytest.approx(step, rel=1e-12) for step in alone]
    assert (package / "log-shared").read_text().count("57,504 parameters") == 2


def test_its_keys_are_checked(package: Path) -> None:
    result = train(package, "--set", "model.hiden_size=3")
    assert result.returncode == 2
    assert 'model.hiden_size: unknown key; did you mean "hidden_size"?' in result.stderr
    result = train(package, PYTHONPATH="elsewhere", PYTHONSAFEPATH="1")
    assert result.returncode == 2
    assert "my_models.trigram:Trigram: No module named 'my_models'" in result.stderr
    assert "PYTHONPATH" in result.stderr


def test_an_installed_package_gives_it_a_short_name(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(package)
    monkeypatch.syspath_prepend(str(package))
    metadata = package / "my_models-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-models\nVersion: 1.0\n")
    section, line = ENTRY_POINT.strip().splitlines()
    group, name = re.findall(r'"(.*)"', section)[0], line.split(" = ")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name[0]} = {json.loads(name[1])}\n")

    def found() -> tuple[str, bool]:
        cfg = load_config("trigram.yaml", [f"model_type={name[0]}"])
        return type(build_model(cfg.model)).__name__, "TRIGRAM" in known_model_types()

    assert run_on_ranks(found, 1) == [("Trigram", True)]

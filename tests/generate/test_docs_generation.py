"""docs/generation.md and the README's line, carried out with a small model where theirs would lie."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from evo_core.checkpoint import TrainState, load_model, save
from evo_core.config import load_config
from evo_core.generate import generate
from evo_core.generate.command import main
from evo_core.model import build_model
from evo_core.placement import Placed, Placement
from tests.generate.conftest import Trained
from tests.model.configs import randomise
from tests.ranks import run_on_ranks
from tests.serve.conftest import serving

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder after `make demo`, whose model is a small one."""
    artifact = tmp_path / "evo_runs" / "artifacts" / "train.pretrain-0123456789ab"
    (artifact / "attempts" / "1").mkdir(parents=True)
    (artifact / "attempts" / "1" / "model").symlink_to(trained.saved / "2")
    (artifact / "manifest.json").write_text(json.dumps({"type": "model", "attempt": 1}))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(word: str) -> list[str]:
    """The commands of the page's first block with that word in it, a command each."""
    (block, *_) = [text for language, text in BLOCKS if not language and word in text]
    return block.replace("\\\n", " ").strip().split("\n")


def test_the_python_on_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source, *_) = [text for language, text in BLOCKS if language == "python"]
    exec(compile(source, "generation.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_python_of_ranks_that_hold_a_model_together(trained: Trained) -> None:
    (source,) = [text for language, text in BLOCKS if language == "python" and "inference_mesh" in text]

    def on_the_page() -> list[int]:
        names: dict[str, Any] = {"CKPT": trained.saved, "load_model": load_model, "generate": generate}
        exec(compile(source, "generation.md", "exec"), names)
        return names["texts"][0].ids

    model, tokenizer = load_model(trained.saved)
    (expected,) = generate(model, tokenizer, ["Once upon a time"], max_new_tokens=50)
    assert run_on_ranks(on_the_page, 2) == [expected.ids] * 2


def test_the_generate_commands_on_the_page(folder: Path) -> None:
    script = "\n".join(lines("evo generate")).replace("evo generate", f"{sys.executable} -m flows.cli generate")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(["bash", "-ec", script], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((folder / "out" / "samples.jsonl").read_text())["prompt"] == "The function"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
@pytest.mark.slow
def test_the_serve_commands_on_the_page(folder: Path) -> None:
    serve, curl = lines("evo serve")
    assert serve.split()[:3] == ["evo", "serve", "$MODEL"]
    (artifact,) = (folder / "evo_runs" / "artifacts").iterdir()
    with serving(artifact) as served:
        here = curl.replace("localhost:8000", served.url)
        answer = subprocess.run(["bash", "-ec", here], capture_output=True, text=True, timeout=60, check=True).stdout
        assert json.loads(answer)["object"] == "text_completion"
        assert httpx.get(f"{served.url}/").status_code == 200


def test_the_generate_line_of_the_readme(folder: Path, trained: Trained, tmp_path: Path) -> None:
    """Its configuration at a size that fits a test; the line itself begins with srun, which a test has not."""
    line = "python -m evo_core.generate --config configs/train/7B_sft.py"
    assert line in (ROOT / "README.md").read_text(encoding="utf-8")
    assert line in PAGE
    small = ["model.num_layers=1", "model.hidden_size=32", "model.num_attention_heads=4", "model.vocab_size=300"]
    small += ["model.dtype=torch.float32", f"data.tokenizer_path={trained.tokenizer}"]

    def train() -> None:
        cfg = load_config("configs/train/7B_sft.py", small)
        model = build_model(cfg.model)
        randomise(model, seed=1, scale=0.5)
        save(
            folder / "llm_ckpts",
            cfg,
            model,
            {"moment": Placed(torch.zeros(1), Placement.whole((1,), [0]))},
            TrainState(step=1),
        )

    run_on_ranks(train, 1)
    main(["--config", "configs/train/7B_sft.py"])
    prompts = (folder / "configs" / "prompts" / "pretrain-7b.txt").read_text(encoding="utf-8").splitlines()
    found = [json.loads(text) for text in (folder / "generated" / "samples.jsonl").read_text().splitlines()]
    assert [sample["prompt"] for sample in found] == [text for text in prompts if text.strip()]

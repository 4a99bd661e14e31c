"""What reads the checkpoints of a run whose weights were gathered: evaluation, generation and conversion, at layouts of
their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evo_core.checkpoint import load_model
from evo_core.convert.command import main as convert
from evo_core.data.tokenize.tokenizers import load_tokenizer, train_sentencepiece
from evo_core.evaluate.command import main as evaluate
from evo_core.generate.command import main as generate
from tests.generate.conftest import SENTENCES
from tests.ranks import run_on_ranks
from tests.train.jobs import job as checked
from tests.train.jobs import run, write_job
from tests.weights.models import same

PARALLEL = {"tensor": {"size": 2, "mode": "isp"}, "weight": {"size": 4, "overlap": True, "memory_pool": True}}
LAYOUTS = {"one": (1, []), "tensor": (2, ["--tensor", "2"]), "stages": (2, ["--tensor", "1", "--pipeline", "2"])}
"""Ranks, and what they are told."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job file, ``ckpt/4`` of its run on 4 ranks, written behind the steps, and prompts."""
    folder = tmp_path_factory.mktemp("gathered")
    tokenizer = train_sentencepiece(SENTENCES * 5, folder / "letters.model", vocab_size=300)
    changes: dict[str, Any] = {
        "model__vocab_size": load_tokenizer(tokenizer).vocab_size,
        "data__tokenizer_path": str(tokenizer),
        "data__total_steps": 4,
        "ckpt__async_upload": True,
        "parallel": PARALLEL,
        "generation": {"max_new_tokens": 8, "batch_size": 2, "prompts": str(folder / "prompts.txt")},
    }
    (folder / "prompts.txt").write_text("the cat\nin the\na\n")
    write_job(folder, **changes)
    run_on_ranks(lambda: run(checked(folder, **changes), folder / "run") and None, 4)
    return folder


def test_evaluation_gives_the_scores_of_one_process(folder: Path, tmp_path: Path) -> None:
    for name, (ranks, told) in LAYOUTS.items():
        asked = ["--model", str(folder / "ckpt"), "--data", str(folder / "valid"), "--output", str(tmp_path / name)]
        run_on_ranks(lambda asked=asked, told=told: evaluate([*asked, *told]), ranks)
    one, *others = (json.loads((tmp_path / name).read_text())["model"] for name in LAYOUTS)
    for other in others:
        assert {name: scores["loss"] for name, scores in other.items()} == pytest.approx(
            {name: scores["loss"] for name, scores in one.items()}, rel=1e-12
        )


def test_generation_gives_the_texts_of_one_process(folder: Path, tmp_path: Path) -> None:
    """The layout of the run's own file means 2 tensor ranks."""
    layouts = LAYOUTS | {"one": (1, ["--tensor", "1"]), "tensor": (2, [])}
    for name, (ranks, told) in layouts.items():
        asked = ["--config", str(folder / "job.yaml"), "--set", f"generation.output_folder={tmp_path / name}"]
        run_on_ranks(lambda asked=asked, told=told: generate([*asked, *told]), ranks)
    one, *others = ((tmp_path / name / "samples.jsonl").read_text() for name in layouts)
    assert len(one.splitlines()) == 3
    assert others == [one] * 2


@pytest.mark.parametrize("form", ["hf", "internevo", "evo"])
def test_other_forms_hold_the_same_weights(folder: Path, tmp_path: Path, form: str) -> None:
    convert([str(folder / "ckpt"), str(tmp_path / form), "--to", form])
    there, here = load_model(tmp_path / form)[0], load_model(folder / "ckpt")[0]
    assert same(there, here)
    assert all(bool(parameter.isfinite().all()) for parameter in here.parameters())

"""The scores of one process, where ranks hold the model together and share texts and questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evo_core.command_line.program import invoke
from evo_core.data.shards.format import BinWriter
from evo_core.errors import ConfigError
from evo_core.evaluate.command import app, main
from tests.evaluate.conftest import TASKS
from tests.ranks import run_on_ranks


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Held-out documents of uneven length; a type with fewer of them than ranks."""
    numbers = np.random.default_rng(0)
    for name, lengths in {"cn": [7], "en": [90, 3, 20, 33, 64, 12]}.items():
        with BinWriter(tmp_path / "valid" / name / "valid_000.bin") as writer:
            for length in lengths:
                writer.write([1, *numbers.integers(3, 400, length).tolist()])
    return tmp_path / "valid"


@pytest.mark.parametrize(
    "layout",
    [["--tensor", "2"], ["--pipeline", "2"], ["--pipeline", "2", "--tensor", "2"]],
    ids=["tensor", "stages", "both"],
)
def test_the_command_gives_the_scores_of_one_process(
    checkpoints: Path, texts: Path, tmp_path: Path, layout: list[str]
) -> None:
    pytest.importorskip("lm_eval", reason='needs lm-eval (pip install "evo-lm[eval]")')
    asked = ["--model", str(checkpoints), "--data", str(texts), "--baselines", str(texts)]
    asked += ["--tasks", str(TASKS / "last_word.yaml"), "--output"]
    main([*asked, str(tmp_path / "one.json")])
    run_on_ranks(lambda: main([*asked, str(tmp_path / "many.json"), *layout]), 4)
    one, many = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "many"))
    expected, found = _plain(one), _plain(many)
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        numeric = isinstance(value, int | float)
        assert found[place] == (pytest.approx(value, rel=1e-9, abs=1e-12) if numeric else value), place


def test_texts_that_are_generated(checkpoints: Path) -> None:
    harness = pytest.importorskip("evo_core.evaluate.harness.model", reason="needs lm-eval")
    from lm_eval.api.instance import Instance

    from evo_core.parallel.inference import inference_mesh
    from evo_core.weights.loading import load_model, read_config

    texts = [(text, {"until": ["e"], "max_gen_toks": 8}) for text in ("The capital of", "成语填空：", "Two and two")]
    requests = [Instance("generate_until", {}, pair, 0) for pair in texts]

    def ranks(tensor: int, pipeline: int = 1) -> Any:
        mesh = inference_mesh(read_config(checkpoints).model, tensor, pipeline)
        model, tokenizer = load_model(checkpoints, mesh=mesh)
        adapter = harness.HarnessModel(model, tokenizer, max_length=64, mesh=mesh)
        return adapter.generate_until(requests)

    expected = run_on_ranks(ranks, 1, 1)[0]
    assert run_on_ranks(ranks, 4, 2) == [expected] * 4
    assert run_on_ranks(ranks, 4, 1, 2) == [expected] * 4


@pytest.mark.parametrize(
    ("world_size", "tensor", "message"),
    [
        (2, 3, "--tensor: 2 ranks do not divide by 3 (nearest: 2, or start 3 ranks)"),
        (
            6,
            6,
            "--tensor: 6 ranks cannot share vocab_size 400, num_attention_heads 4, an MLP 256 wide, "
            "hidden_size 32 (nearest on 6 ranks: 2)",
        ),
        (1, 0, "--tensor: 0 must be 1 or more"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_on_every_rank(
    checkpoints: Path, texts: Path, world_size: int, tensor: int, message: str
) -> None:
    def ranks() -> str:
        with pytest.raises(ConfigError) as caught:
            invoke(app, ["--model", str(checkpoints), "--data", str(texts), "--tensor", str(tensor)], "evaluate")
        return str(caught.value)

    for said in run_on_ranks(ranks, world_size):
        assert said.startswith(message)


def _plain(value: Any, at: str = "") -> dict[str, Any]:
    """Numbers and texts of nested data by their place."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {at: value}
    return {name: one for key, item in items for name, one in _plain(item, f"{at}/{key}").items()}

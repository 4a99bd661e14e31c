"""Scores over the stages of a pipeline: those of one process, on every rank, and no rank left waiting."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import nn

from evo_core.config import TrainConfig
from evo_core.errors import DataError
from evo_core.evaluate.holdout import holdout
from evo_core.evaluate.likelihood import Continuation, likelihoods
from evo_core.model import build_model, init_weights
from evo_core.parallel.apply import build_parallel
from evo_core.parallel.first_weights import draw_first_weights
from evo_core.parallel.mesh import Mesh, make_mesh
from evo_core.parallel.passes import passes_of
from evo_core.parallel.pipeline.placing import placing_of
from tests.ranks import run_on_ranks
from tests.train.jobs import TYPES, job

EXPERTS = {"model_type": "INTERNLM_MoE", "model__num_experts": 4, "model__num_kv_attention_heads": 4}


def whole(cfg: TrainConfig) -> nn.Module:
    model = build_model(cfg.model)
    init_weights(model, cfg.model, cfg.seed)
    return model


def part(cfg: TrainConfig, mesh: Mesh) -> nn.Module:
    model = build_parallel(cfg.model, mesh, "cpu", mode=cfg.parallel.tensor.mode, placing=placing_of(cfg))
    draw_first_weights(model, cfg.model, cfg.seed, mesh)
    return model


def over_stages(cfg: TrainConfig, world_size: int, **reading: Any) -> Any:
    """The scores that this rank gets, and whether outputs are computed here; only the first stage finds data."""
    mesh = make_mesh(cfg.degrees(world_size))
    model = part(cfg, mesh)
    model.train()
    passes = passes_of(model, mesh, cfg)
    valid = cfg.data.valid_folder if mesh.pipeline.rank == 0 else "/nowhere"
    scores = holdout(model, valid, seq_len=32, micro_bsz=cfg.data.micro_bsz, mesh=mesh, passes=passes, **reading)
    assert model.training
    return scores, passes.has_output


@pytest.mark.parametrize(
    ("ranks", "outputs", "parallel", "settings"),
    [
        (3, [2], {"pipeline": 3}, {"model__num_layers": 4}),
        (2, [1], {"pipeline": 2}, {"model__num_layers": 4, "model__num_chunks": 2}),
        (2, [0], {"pipeline": {"size": 2, "mode": "ZBV"}}, {"model__num_layers": 4, "model__num_chunks": 2} | EXPERTS),
        (4, [2, 3], {"pipeline": 2, "tensor": {"size": 2, "mode": "msp"}}, {"data__micro_bsz": 2}),
        (4, [2, 3], {"pipeline": 2}, {"model__tie_word_embeddings": True}),
    ],
    ids=["three uneven", "interleaved", "v and experts", "of tensor ranks", "of data ranks, tied"],
)
def test_every_rank_gets_the_scores_of_one_process(
    tmp_path: Path, ranks: int, outputs: list[int], parallel: dict[str, Any], settings: dict[str, Any]
) -> None:
    cfg = job(tmp_path, parallel=parallel, **settings)
    expected = holdout(whole(cfg), cfg.data.valid_folder, seq_len=32, micro_bsz=cfg.data.micro_bsz)
    results = run_on_ranks(over_stages, ranks, cfg, ranks)
    assert [rank for rank, (_, here) in enumerate(results) if here] == outputs
    for scores, _ in results:
        assert scores == results[0][0]
        assert list(scores) == list(TYPES)
        if ranks == cfg.parallel.pipeline.size:
            assert scores == expected  # to the bit
        for name, score in scores.items():
            assert score["tokens"] == expected[name]["tokens"]
            for key in ("loss", "acc", "perplexity", "loss_stderr", "acc_stderr"):
                assert score[key] == pytest.approx(expected[name][key], rel=1e-12), key


def test_text_that_is_wrong_is_an_error_on_every_rank(tmp_path: Path) -> None:
    """Two copies of the model; the text of one of them has an id outside the vocabulary."""
    cfg = job(tmp_path, parallel={"pipeline": 2})

    def body() -> str:
        with pytest.raises(DataError) as caught:
            over_stages(cfg, 4, vocab_size=60 if dist.get_rank() == 1 else 64)
        return str(caught.value)

    said = run_on_ranks(body, 4)
    assert "train_000.bin" in said[0]
    assert said == [said[0]] * 4


@pytest.mark.parametrize(("ranks", "stages"), [(3, 3), (4, 2)])
def test_likelihoods_of_packs_of_any_length(tmp_path: Path, ranks: int, stages: int) -> None:
    """More packs than are under way at a time, each as long as what is in it; copies of the model share them."""
    cfg = job(tmp_path, parallel={"pipeline": stages}, model__num_layers=4)
    draws = random.Random(0)
    continuations = [
        Continuation([draws.randrange(64) for _ in range(draws.randint(1, 20))], [draws.randrange(64)] * (i % 3 + 1))
        for i in range(60)
    ]
    expected = likelihoods(whole(cfg), continuations, max_length=24, pack_tokens=20)

    def body() -> Any:
        mesh, done = make_mesh(cfg.degrees(ranks)), []
        found = likelihoods(
            part(cfg, mesh),
            continuations,
            max_length=24,
            pack_tokens=20,
            mesh=mesh,
            on_pack=lambda *counts: done.append(counts),
        )
        return found, done

    results = run_on_ranks(body, ranks)
    for found, done in results:
        assert found == expected  # to the bit
        assert len(done) > 1
        assert done[-1][0] == done[-1][1] > 4 * stages

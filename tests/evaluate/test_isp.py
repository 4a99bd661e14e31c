"""Scores where copies of a model share weights, or have experts for each other: those of one process, and no copy left
waiting for another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from evo_core.config import TrainConfig
from evo_core.data import Batch, BinWriter, validation_batches
from evo_core.errors import DataError
from evo_core.evaluate.holdout import holdout
from evo_core.evaluate.in_step import in_step
from evo_core.evaluate.likelihood import Continuation, likelihoods
from evo_core.parallel.collectives import RankFailed
from evo_core.parallel.mesh import Mesh, make_mesh
from evo_core.parallel.passes import MicroBatch, passes_of
from evo_core.train.run import make_model
from tests.evaluate.test_stages import EXPERTS, whole
from tests.ranks import run_on_ranks
from tests.train.jobs import TYPES, job

NTK = {"model__use_dynamic_ntk_rope": True, "model__max_position_embeddings": 16}
SIX_HEADS = {
    "model__hidden_size": 24,
    "model__num_attention_heads": 6,
    "model__num_kv_attention_heads": 6,
    "model__multiple_of": 48,
}
"""Weights that divide over three ranks."""


def isp(tensor: int, weight: int, **more: Any) -> dict[str, Any]:
    weights = {"size": weight, "overlap": True, "memory_pool": True}
    return {"tensor": {"size": tensor, "mode": "isp"}, "weight": weights, **more}


def made(cfg: TrainConfig, mesh: Mesh) -> nn.Module:
    return make_model(cfg, mesh, torch.device("cpu"), drawn=True)


def valid_of(cfg: TrainConfig) -> Path:
    return Path(str(cfg.data.valid_folder))


def write_uneven(folder: Path) -> None:
    """A type with one document, of which a second copy sees nothing, and one with as many packs as do not divide."""
    for name, lengths in {"few": [9], "odd": [33, 30, 40, 33, 33]}.items():
        with BinWriter(folder / name / "train_000.bin") as writer:
            for number, length in enumerate(lengths):
                writer.write([(3 + 7 * number + 5 * place) % 60 + 3 for place in range(length)])


def scores_here(cfg: TrainConfig, folders: list[Path]) -> Any:
    """This rank's scores, and how many runs of passes it made; each copy of the model reads a folder of its own."""
    mesh = make_mesh(cfg.degrees(dist.get_world_size()))
    model = made(cfg, mesh).train()
    passes, runs = passes_of(model, mesh, cfg), []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    folder = folders[mesh.data.rank % len(folders)]
    scores = holdout(model, folder, seq_len=32, micro_bsz=cfg.data.micro_bsz, mesh=mesh, passes=passes)
    assert model.training
    return scores, len(runs)


@pytest.mark.parametrize(
    ("ranks", "parallel", "settings"),
    [
        (4, isp(2, 4), NTK),
        (4, isp(1, 2), EXPERTS),
        pytest.param(6, isp(2, 3), SIX_HEADS | {"data__micro_bsz": 2}, marks=pytest.mark.slow),
        (4, isp(1, 2, pipeline=2), EXPERTS | NTK),
        (4, {"expert": 4}, EXPERTS),
        pytest.param(4, {"pipeline": 2, "expert": 2}, EXPERTS, marks=pytest.mark.slow),
    ],
    ids=["of all copies", "of some copies", "of one and a half", "stages", "experts", "experts in stages"],
)
def test_every_rank_gets_the_scores_of_one_process(
    tmp_path: Path, ranks: int, parallel: dict[str, Any], settings: dict[str, Any]
) -> None:
    cfg = job(tmp_path, parallel=parallel, **settings)
    write_uneven(valid_of(cfg))
    expected = holdout(whole(cfg), valid_of(cfg), seq_len=32, micro_bsz=cfg.data.micro_bsz)
    assert {*expected} == {*TYPES, "few", "odd"}
    for scores, _ in run_on_ranks(scores_here, ranks, cfg, [valid_of(cfg)]):
        assert scores.keys() == expected.keys()
        for name, score in scores.items():
            assert score["tokens"] == expected[name]["tokens"]
            for key in ("nll", "hits", "targets"):
                assert score["blocks"][key] == pytest.approx(expected[name]["blocks"][key], rel=1e-12), (name, key)


@pytest.mark.parametrize(
    ("ranks", "parallel", "settings"),
    [(2, isp(1, 2), {}), (4, isp(1, 2, pipeline=2), {}), (2, {"expert": 2}, EXPERTS)],
    ids=["whole", "stages", "experts"],
)
def test_a_copy_with_less_text_makes_empty_passes(
    tmp_path: Path, ranks: int, parallel: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Every machine has a folder of its own, and they differ."""
    cfg = job(tmp_path, parallel=parallel, **settings)
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder, count in zip(folders, (3, 40), strict=True):
        with BinWriter(folder / "en" / "train_000.bin") as writer:
            for number in range(count):
                writer.write([(number + place) % 60 + 3 for place in range(33)])
    expected, passes = run_on_ranks(scores_here, 2, job(tmp_path, parallel={"expert": 1}, **settings), folders)[0]
    results = run_on_ranks(scores_here, ranks, cfg, folders)
    assert expected["en"]["tokens"] == 32 * (2 + 20)
    assert passes == 2
    for scores, runs in results:
        assert runs == 20
        assert scores == results[0][0]
        assert scores["en"]["blocks"]["nll"] == pytest.approx(expected["en"]["blocks"]["nll"], rel=1e-12)
        assert scores["en"]["blocks"]["targets"] == expected["en"]["blocks"]["targets"]


@pytest.mark.parametrize("parallel", [isp(2, 4), isp(1, 2, pipeline=2)], ids=["whole", "stages"])
@pytest.mark.parametrize("damage", ["cut off", "a type fewer"])
def test_text_that_one_copy_cannot_read_ends_all(tmp_path: Path, parallel: dict[str, Any], damage: str) -> None:
    cfg = job(tmp_path, parallel=parallel)
    job(tmp_path / "there")
    there = tmp_path / "there" / "valid"
    if damage == "cut off":
        shard = there / "code" / "train_000.bin"
        shard.write_bytes(shard.read_bytes()[:-1])
        told = "train_000.bin:6: the last line has no end"
    else:
        (there / "code").rename(tmp_path / "code")
        told = f"{there}: there is no data type code, only cn, en"

    def body() -> str:
        with pytest.raises(DataError) as caught:
            scores_here(cfg, [valid_of(cfg), there])
        return str(caught.value)

    said = run_on_ranks(body, 4, timeout=30)
    assert told in said[0]
    assert said == [said[0]] * 4


def batches_until(error: Exception, count: int, mesh: Mesh, valid: Path) -> Iterator[Batch]:
    """Batches of the second copy end with an error."""
    own = validation_batches(valid, "en", seq_len=32, micro_bsz=1, dp_rank=mesh.data.rank, dp_size=mesh.data.size)
    for number, batch in enumerate([*own] * 5):
        if mesh.data.rank == 1 and number == count:
            raise error
        yield batch


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DataError("a bad block", file="disk"), (DataError, "disk: a bad block")),
        (OSError("a bad block"), (RankFailed, "rank 1: OSError: a bad block")),
    ],
    ids=["of the text", "of the machine"],
)
def test_an_error_in_the_middle_of_a_run_ends_all(
    tmp_path: Path, error: Exception, told: tuple[type[Exception], str]
) -> None:
    cfg = job(tmp_path, parallel=isp(1, 2))

    def body() -> Any:
        mesh = make_mesh(cfg.degrees(2))
        passes, done = passes_of(made(cfg, mesh), mesh, cfg), []
        batches = batches_until(error, 3, mesh, valid_of(cfg))
        empty = Batch.without_targets(1, 32, 32)

        def micro_batch(batch: Batch) -> Any:
            return MicroBatch(batch.input_ids[0], batch.positions[0], batch.cu_seqlens[0], {"labels": batch.labels[0]})

        with pytest.raises((DataError, RankFailed)) as caught:
            for some in in_step(batches, 1, empty=empty, copies=mesh.data, device="cpu"):
                passes.forward(1, lambda _, some=some: micro_batch(some[0]), lambda *_: done.append(1))
        return len(done), caught.type, str(caught.value)

    assert run_on_ranks(body, 2, timeout=30) == [(3, *told)] * 2


@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [(2, isp(1, 2)), pytest.param(4, isp(1, 2, pipeline=2), marks=pytest.mark.slow)],
    ids=["whole", "stages"],
)
def test_packs_that_do_not_divide_over_copies(tmp_path: Path, ranks: int, parallel: dict[str, Any]) -> None:
    cfg = job(tmp_path, parallel=parallel)
    continuations = [Continuation([5 + i % 9] * (i % 7 + 9), [3 + i] * (i % 3 + 1)) for i in range(17)]
    expected = likelihoods(whole(cfg), continuations, max_length=24, pack_tokens=16)

    def body() -> Any:
        mesh, done = make_mesh(cfg.degrees(ranks)), []
        model = made(cfg, mesh)
        settings: dict[str, Any] = {"mesh": mesh, "on_pack": lambda *counts: done.append(counts)}
        found = likelihoods(model, continuations, max_length=24, pack_tokens=16, **settings)
        return found, done[-1]

    for found, done in run_on_ranks(body, ranks, timeout=30):
        assert done == (9, 9)
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-12)

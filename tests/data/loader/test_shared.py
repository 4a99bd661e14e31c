"""Ranks that work on the same batches: one of them reads, and all have its batches, bit by bit, and its errors."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import datasets  # noqa: F401  once, before ranks are forked: it takes seconds
import pytest
import torch
import torch.distributed as dist

from evo_core.config import TrainConfig
from evo_core.data.loader import hf_stream
from evo_core.data.loader.batch import Batch
from evo_core.data.loader.prefetch import Prefetch, open_source
from evo_core.data.loader.shared import shared
from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.errors import UserError
from evo_core.train.checkpointing import data_cursors
from tests.data.corpora import job, numbered, write_folder
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

STEPS = 6


def stream_job(folder: Path, tokenizer: Tokenizer, **data: Any) -> TrainConfig:
    """A stream of files of texts that all differ."""
    if not folder.is_dir():
        folder.mkdir()
        for part in range(3):
            texts = [f"{part} over {n} view" * (1 + n % 3) for n in range(40)]
            (folder / f"{part}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = {"micro_num": 3, "seq_len": 16, "num_worker": 1} | data
    return job(folder, vocab_size=600, type="hf", tokenizer_path=str(tokenizer.path), **data)


def token_job(folder: Path, **data: Any) -> TrainConfig:
    """Shards of two types, and micro-batches that become more."""
    write_folder(folder, {"en": [numbered(50)], "cn": [[[-5, 6, 7, 0, 8], *numbered(9, first=5000)]]})
    return job(folder, micro_num=4, rampup_batch_size="1 1 2", **data)


def without_data(cfg: TrainConfig) -> TrainConfig:
    """The job as a machine sees it on which the data are not."""
    data = cfg.data.model_copy(update={"train_folder": "/nowhere", "tokenizer_path": "/nowhere"})
    return cfg.model_copy(update={"data": data})


def read(cfg: TrainConfig, tensor: int) -> dict[str, Any]:
    """All that a rank of a group gets, where only the first ranks of groups see the data; and the mesh's numbers."""
    mesh = mesh_of(1, tensor={"size": tensor})
    own = cfg if mesh.tensor.rank == 0 else without_data(cfg)
    source = open_source(own, dp_rank=mesh.data.rank, dp_size=mesh.data.size, tensor=mesh.tensor)
    with Prefetch(source, 0, 99, workers=cfg.data.num_worker, tensor=mesh.tensor) as feed:
        batches = [feed.batch(step) for step in range(STEPS)]
        threads = sum(thread.name.startswith("batches") for thread in threading.enumerate())
        return {
            "data": mesh.data.rank,
            "facts": (source.types, source.digest, source.sequential, source.trained, source.describe()),
            "batches": batches,
            "cursors": data_cursors(feed, mesh),
            "threads": threads,
        }


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    for one, other in zip(found, expected, strict=True):
        for name in ("input_ids", "labels", "positions", "type_ids"):
            assert getattr(one, name).dtype == torch.int64
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        for cuts, others in zip(one.cu_seqlens, other.cu_seqlens, strict=True):
            assert cuts.dtype == torch.int32
            assert torch.equal(cuts, others)


@pytest.mark.parametrize(("ranks", "tensor"), [(2, 2), (4, 2), (4, 4)])
@pytest.mark.parametrize("workers", [0, 2])
def test_all_have_the_batches_of_the_one_that_reads(tmp_path: Path, ranks: int, tensor: int, workers: int) -> None:
    cfg = token_job(tmp_path / "d", num_worker=workers)
    for rank, found in enumerate(run_on_ranks(read, ranks, cfg, tensor)):
        assert found["data"] == rank // tensor
        source = open_source(cfg, dp_rank=rank // tensor, dp_size=ranks // tensor)
        expected = [source.draw(step)[0] for step in range(STEPS)]
        assert [batch.micro_num for batch in expected] == [1, 1, 2, 2, 3, 3]
        assert_same(found["batches"], expected)
        assert found["facts"] == (source.types, source.digest, False, source.trained, source.describe())
        assert found["cursors"] == []
        assert found["threads"] == (workers if rank % tensor == 0 else 0)


@pytest.mark.parametrize(
    "layout", [{"pack_sample_into_one": True}, {"use_packed_dataset": False}, {"packing": "internevo", "use_shm": True}]
)
def test_however_packs_are_made(tmp_path: Path, layout: dict[str, Any]) -> None:
    """Cut every seq_len tokens wherever documents end, rows with padding, InternEvo's order from a shared index."""
    cfg = token_job(tmp_path / "d", shm_path=str(tmp_path / "shm"), **layout)
    source = open_source(cfg, dp_rank=0, dp_size=1)
    expected = [source.draw(step)[0] for step in range(STEPS)]
    source.close()
    for found in run_on_ranks(read, 2, cfg, 2):
        assert_same(found["batches"], expected)


@pytest.mark.parametrize(("ranks", "tensor"), [(2, 2), (4, 2)])
def test_a_stream_is_tokenized_once_and_goes_on(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, ranks: int, tensor: int
) -> None:
    """At any layout with as many data-parallel ranks: here on a single one after each of several."""
    monkeypatch.setattr(hf_stream, "_TEXTS", 7)  # so that cursors lie in the middle of what was tokenized
    cfg = stream_job(tmp_path / "d", tokenizer)
    everyone = run_on_ranks(read, ranks, cfg, tensor)
    cursors = everyone[0]["cursors"]
    assert all(found["cursors"] == cursors for found in everyone)
    assert len(cursors) == ranks // tensor
    for rank, found in enumerate(everyone):
        source = open_source(cfg, dp_rank=rank // tensor, dp_size=ranks // tensor)
        assert_same(found["batches"], [source.draw(step)[0] for step in range(STEPS)])
        resumed = open_source(cfg, dp_rank=rank // tensor, dp_size=ranks // tensor)
        resumed.restore(cursors[rank // tensor])
        assert_same([resumed.draw(STEPS)[0]], [source.draw(STEPS)[0]])


def test_a_rank_alone_sends_nothing(tmp_path: Path) -> None:
    def check() -> bool:
        mesh = mesh_of(1)
        assert mesh.tensor.size == 1
        found = object()  # which could not be sent
        return shared(lambda: found, mesh.tensor) is found

    assert run_on_ranks(check, 1) == [True]


def failing(cfg: TrainConfig, rank_that_fails: int) -> tuple[int | None, str]:
    """The step at which a rank gets an error (None: when it opens the data), and what it says."""
    mesh = mesh_of(1, tensor={"size": 2})
    step, own = None, cfg if mesh.data.rank == rank_that_fails else without_data(cfg)
    try:
        source = open_source(own, dp_rank=mesh.data.rank, dp_size=mesh.data.size, tensor=mesh.tensor)
        with Prefetch(source, 0, 99, workers=cfg.data.num_worker, tensor=mesh.tensor) as feed:
            for step in range(99):
                feed.batch(step)
    except UserError as error:
        return step, f"{type(error).__name__} {error}"
    raise AssertionError("no error")


def test_an_error_at_opening_is_raised_on_all(tmp_path: Path) -> None:
    found = run_on_ranks(failing, 2, job(tmp_path / "missing"), 0)
    assert found[0] == found[1]
    assert found[0][0] is None
    assert str(tmp_path / "missing") in found[0][1]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_batch_is_raised_on_all_at_its_step(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Each group has its own: the second one does not even find the folder."""
    monkeypatch.setattr(hf_stream, "_TEXTS", 7)
    cfg = stream_job(tmp_path / "d", tokenizer, num_worker=workers)
    (tmp_path / "d" / "2.jsonl").write_text('{"text": "a"}\n{"text": \n')
    found = run_on_ranks(failing, 4, cfg, 0)
    assert found[0] == found[1]
    assert found[2] == found[3]
    step, said = found[0]
    assert step is not None and step > 0
    assert said.startswith("DataError ") and "the data set cannot be read" in said
    assert found[2][0] is None and "/nowhere" in found[2][1]


def test_what_others_have_cannot_be_drawn(tmp_path: Path) -> None:
    cfg = token_job(tmp_path / "d")

    def ask() -> str:
        mesh = mesh_of(1, tensor={"size": 2})
        source = open_source(cfg, dp_rank=0, dp_size=1, tensor=mesh.tensor)
        if dist.get_rank() == 0:
            return ""
        with pytest.raises(RuntimeError) as caught:
            source.draw(4)
        return str(caught.value)

    assert run_on_ranks(ask, 2) == ["", "step 4 is drawn by another rank"]

"""Training batches: the same at every number of ranks and at any step, and no document is lost."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from evo_core.config import TrainConfig
from evo_core.data import TrainData
from evo_core.errors import ConfigError, DataError
from tests.data.corpora import job, numbered, write_bin, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three types; files as small as one document, one without any; no id occurs twice."""
    documents = numbered(120)
    types = {
        "en": [documents[:40], documents[40:41], [], documents[41:60]],
        "cn": [documents[60:110]],
        "code": [[document] for document in documents[110:]],
    }
    return write_folder(tmp_path / "data", types)


def _rows(batch: object) -> list[tuple]:
    return [
        (
            batch.input_ids[i].tolist(),
            batch.labels[i].tolist(),
            batch.type_ids[i].tolist(),
            batch.cu_seqlens[i].tolist(),
        )
        for i in range(batch.micro_num)
    ]


def _union(cfg: object, dp_size: int, step: int) -> list[tuple]:
    ranks = [_rows(TrainData(cfg, dp_rank=rank, dp_size=dp_size).batch(step)) for rank in range(dp_size)]
    return sorted(row for rows in ranks for row in rows)


def test_shapes(folder: Path) -> None:
    data = TrainData(job(folder, micro_num=3), dp_rank=0, dp_size=1)
    batch = data.batch(0)
    assert data.types == ("cn", "code", "en")
    for tensor in (batch.input_ids, batch.labels, batch.positions, batch.type_ids):
        assert tensor.shape == (3, 16)
        assert tensor.dtype == torch.int64
    assert [cu.dtype for cu in batch.cu_seqlens] == [torch.int32] * 3
    moved = batch.to("cpu")
    assert _rows(moved) == _rows(batch)


@pytest.mark.parametrize("form", ["local:{}", "file://{}", "{}/", "~/{}"])
def test_the_folder_is_written_as_every_location_is(folder: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    written = form.format(folder.name if form.startswith("~") else folder)
    cfg = job(folder)
    elsewhere = cfg.model_copy(update={"data": cfg.data.model_copy(update={"train_folder": written})})
    assert _union(elsewhere, 1, 0) == _union(cfg, 1, 0)


def test_a_blank_folder_is_random_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # whose shards "" would mean
    written = job(None).to_plain()
    written["data"]["train_folder"] = ""
    data = TrainData(TrainConfig.model_validate(written), dp_rank=0, dp_size=1)
    assert data.types == ("en", "cn", "code")
    assert data.tokens["cn"] == 0


def test_every_token_comes_once_an_epoch_with_its_type(folder: Path) -> None:
    data = TrainData(job(folder, micro_num=1), dp_rank=0, dp_size=1)
    tokens = sum(data.tokens.values())
    steps = 4 * tokens // 16
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(steps):
        batch = data.batch(step)
        seen.update(zip(batch.input_ids[0].tolist(), batch.type_ids[0].tolist(), strict=True))
    assert len(seen) == tokens, "every token of every file, however small"
    assert set(seen.values()) <= {3, 4, 5}
    assert data.epoch(0) == 0
    assert data.epoch(steps) in (3, 4)
    per_type = Counter(type_id for _, type_id in seen)
    assert [per_type[i] for i in range(3)] == [data.tokens[name] for name in ("cn", "code", "en")]


@pytest.mark.parametrize("into_one", [False, True])
def test_the_order_does_not_depend_on_ranks(folder: Path, into_one: bool) -> None:
    cfg = job(folder, global_batch_tokens=16 * 12, pack_sample_into_one=into_one)
    for step in (0, 7, 31):
        one = _union(cfg, 1, step)
        assert len(one) == 12
        for dp_size in (2, 3, 4, 6):
            assert _union(cfg, dp_size, step) == one


def test_any_step_can_be_asked_for(folder: Path) -> None:
    cfg = job(folder, micro_num=2)
    data = TrainData(cfg, dp_rank=1, dp_size=2)
    forward = [_rows(data.batch(step)) for step in range(30)]
    for step in (29, 3, 17, 0):
        assert _rows(data.batch(step)) == forward[step]
        assert _rows(TrainData(cfg, dp_rank=1, dp_size=2).batch(step)) == forward[step]
    assert len({str(rows) for rows in forward}) == 30


def test_growing_batches_take_the_same_packs_in_the_same_order(folder: Path) -> None:
    constant = TrainData(job(folder, micro_num=1), dp_rank=0, dp_size=1)
    growing = TrainData(job(folder, micro_num=3, rampup_batch_size="1 1 2"), dp_rank=0, dp_size=1)
    batches = [growing.batch(step) for step in range(8)]
    assert [batch.micro_num for batch in batches] == [1, 1, 2, 2, 3, 3, 3, 3]
    rows = [row for batch in batches for row in _rows(batch)]
    assert rows == [_rows(constant.batch(step))[0] for step in range(len(rows))]


def test_growing_batches_on_two_ranks(folder: Path) -> None:
    cfg = job(folder, micro_num=2, rampup_batch_size="1 1 1")
    whole = TrainData(job(folder, micro_num=1), dp_rank=0, dp_size=1)
    packs = [_rows(whole.batch(step))[0] for step in range(6)]
    assert _union(cfg, 2, 0) == sorted(packs[:2])
    assert _union(cfg, 2, 1) == sorted(packs[2:6])


def test_seed_and_data_decide_the_order(folder: Path) -> None:
    first = TrainData(job(folder, micro_num=2), dp_rank=0, dp_size=2)
    same = TrainData(job(folder, micro_num=2), dp_rank=1, dp_size=2)
    other = TrainData(job(folder, micro_num=2, seed=8), dp_rank=0, dp_size=2)
    assert first.digest == same.digest != other.digest
    assert _rows(first.batch(0)) != _rows(other.batch(0))


def test_a_copy_of_the_data_is_the_same_data(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    before = TrainData(job(folder), dp_rank=0, dp_size=1)
    copy = TrainData(job(tmp_path / "copy"), dp_rank=0, dp_size=1)
    assert before.digest == copy.digest
    assert _rows(before.batch(5)) == _rows(copy.batch(5))
    write_bin(tmp_path / "copy" / "en" / "train_009.bin", [[1, 2]])
    assert TrainData(job(tmp_path / "copy"), dp_rank=0, dp_size=1).digest != before.digest


def test_short_samples_are_left_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d", {"en": [[[1, 2], [3, 4, 5], [6, 7, 8, 9]]], "cn": [[[10]]]})
    data = TrainData(job(folder, min_length=3), dp_rank=0, dp_size=1)
    assert data.tokens == {"cn": 0, "en": 7}
    seen = {token for step in range(4) for token in data.batch(step).input_ids.flatten().tolist()}
    assert seen == {3, 4, 5, 6, 7, 8, 9}


def test_a_corpus_smaller_than_a_pack_is_repeated(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d", {"en": [[[1, 2, 3]]]})
    batch = TrainData(job(folder), dp_rank=0, dp_size=1).batch(0)
    assert batch.input_ids.tolist() == [[1, 2, 3] * 5 + [1]]
    assert batch.labels.tolist() == [[2, 3, -100] * 5 + [2]]


def test_token_zero(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d", {"en": [[[5, 0, 6, -7]]]})
    assert TrainData(job(folder), dp_rank=0, dp_size=1).batch(0).labels[0, :4].tolist() == [0, 6, -100, -100]
    masked = TrainData(job(folder, mask_token_zero=True), dp_rank=0, dp_size=1)
    assert masked.batch(0).labels[0, :4].tolist() == [-100, 6, -100, -100]
    assert masked.batch(0).input_ids[0, :4].tolist() == [5, 0, 6, 7]


def test_a_later_file_of_internevo_reads(tmp_path: Path) -> None:
    write_bin(tmp_path / "d" / "en" / "deep" / "x.bin", [[1, 2, 3]], meta_dtype=np.int32)
    assert TrainData(job(tmp_path / "d"), dp_rank=0, dp_size=1).tokens == {"en": 3}


def test_random_data(tmp_path: Path) -> None:
    cfg = job(None, micro_num=2, vocab_size=250)
    batch = TrainData(cfg, dp_rank=0, dp_size=1).batch(3)
    assert batch.input_ids.shape == (2, 16)
    assert int(batch.input_ids.max()) < 250
    assert TrainData(cfg, dp_rank=0, dp_size=1).types == ("en", "cn", "code")
    assert _union(job(None, global_batch_tokens=64), 2, 3) == _union(job(None, global_batch_tokens=64), 1, 3)
    tiny = TrainData(job(None, vocab_size=16), dp_rank=0, dp_size=1).batch(0)
    assert int(tiny.input_ids.max()) < 16
    varied = TrainData(job(None, fixed_random_dataset_seqlen=False, seq_len=4096, micro_bsz=1), dp_rank=0, dp_size=1)
    ids = varied.batch(0).input_ids[0].tolist()
    lengths = np.diff(varied.batch(0).cu_seqlens[0].numpy()).tolist()
    assert len(lengths) > 1
    start = lengths[0]
    assert ids[start + 2 : start + 2 + ids[start]] == list(range(ids[start])), "it counts to n"


def test_ids_outside_the_vocabulary_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"train_0\d\d\.bin:\d+: token id \d+ is outside the vocabulary of 300"):
        TrainData(job(folder, vocab_size=300), dp_rank=0, dp_size=1)


def test_impossible_batches(folder: Path) -> None:
    with pytest.raises(ConfigError, match="global_batch_tokens"):
        TrainData(job(folder, global_batch_tokens=16 * 4), dp_rank=0, dp_size=3)


def test_wrong_folders(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    cases = {
        "no such data folder": tmp_path / "missing",
        "no token files": empty,
        "lies beside the data types": tmp_path / "flat",
        "needs its .bin.meta": tmp_path / "bare",
        "no document is left": tmp_path / "blank",
    }
    (empty / "en").mkdir(parents=True)
    write_bin(tmp_path / "flat" / "x.bin", [[1]])
    write_bin(tmp_path / "bare" / "en" / "x.bin", [[1]])
    (tmp_path / "bare" / "en" / "x.bin.meta").unlink()
    write_bin(tmp_path / "blank" / "en" / "x.bin", [])
    for message, folder in cases.items():
        with pytest.raises(DataError, match=message) as raised:
            TrainData(job(folder), dp_rank=0, dp_size=1)
        assert str(folder) in str(raised.value)

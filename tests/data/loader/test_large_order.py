"""The order of many documents, at a scale of a few: every token once, the same at any rank and step, well mixed."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evo_core import pulse
from evo_core.data import TrainData
from evo_core.data.corpus.corpus import MinLength
from evo_core.data.corpus.index import Index
from evo_core.data.corpus.large import open_blocks
from evo_core.data.loader.large_order import GroupedRows, GroupedTokens, Groups, WindowOrder, blocks_of_group
from evo_core.data.loader.scale import SCALE, Scale
from evo_core.errors import DataError
from tests.data.corpora import job, numbered, write_bin, write_folder
from tests.data.loader.test_training_order import MODES, dataset, rows
from tests.forked import in_a_process_of_nobody

SMALL = Scale(documents=50, block=4, group=3, window=8)
LARGE_MODES = {name: options for name, options in MODES.items() if name != "internevo"}


def opened(cfg: Any, rank: int = 0, ranks: int = 1, scale: Scale = SMALL) -> TrainData:
    return TrainData(cfg, dp_rank=rank, dp_size=ranks, scale=scale)


# ---- exactly once


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 0),
    st.integers(1, 64),
    st.integers(1, 9),
    st.integers(1, 50),
    st.integers(0, 3),
)
def test_every_pack_of_every_type_comes_once(
    sizes: list[int], per_pack: int, windows: int, most: int, seed: int
) -> None:
    order = WindowOrder(sizes, per_pack, seed, windows=windows, most=most)
    epochs = 3
    seen = [order.locate(position) for position in range(order.packs_before(epochs))]
    for epoch in range(epochs):
        expected = [
            (number, pack)
            for number, size in enumerate(sizes)
            for pack in range(epoch * size // per_pack, (epoch + 1) * size // per_pack)
        ]
        assert sorted(seen[order.packs_before(epoch) : order.packs_before(epoch + 1)]) == expected
    backwards = WindowOrder(sizes, per_pack, seed, windows=windows, most=most)
    assert [backwards.locate(position) for position in reversed(range(len(seen)))] == seen[::-1]


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """Lengths of the documents of some files, and a min_length."""
    lengths = st.lists(st.integers(1, 9), min_size=0, max_size=25)
    files = draw(st.lists(lengths, min_size=1, max_size=4))
    shortest = draw(st.integers(0, 4))
    files[0].append(9)  # something is left
    return files, shortest


@settings(max_examples=25)
@given(corpora(), st.integers(1, 12), st.integers(1, 7), st.integers(1, 5), st.integers(0, 2))
def test_every_token_comes_once_an_epoch(
    corpus: tuple[list[list[int]], int], packed_length: int, block: int, group: int, seed: int
) -> None:
    files, shortest = corpus
    with TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVO_CACHE", f"{temporary}/cache")
        next_id, contents, kept = 1, [], []
        for lengths in files:
            contents.append([list(range(next_id := next_id + 100, next_id + length)) for length in lengths])
            kept += [document for document in contents[-1] if len(document) >= shortest]
        write_folder(folder := Path(temporary, "d"), {"en": contents})
        documents = open_blocks(folder, size=block, min_length=MinLength(shortest)).documents["en"]
        assert (documents.documents, documents.tokens) == (len(kept), sum(map(len, kept)))
        assert len(documents) == -(-len(kept) // block)
        groups = Groups(documents, group, seed=seed, name="en", index=Index())
        _every_token_once(GroupedTokens(groups, packed_length), kept)
        _every_row_once(GroupedRows(groups, 5, rows=packed_length), kept)


def _every_token_once(stream: GroupedTokens, documents: list[list[int]]) -> None:
    """The stream is documents behind each other, each once an epoch, and labels go on with their own document."""
    epochs, follows = 3, {a: b for document in documents for a, b in pairwise(document)}
    tokens: list[int] = []
    for number in range(-(-epochs * stream.size // stream.per_pack)):
        pieces = stream.pieces(number)
        assert sum(map(len, pieces.ids)) == stream.per_pack
        for ids, length, following in zip(pieces.ids, pieces.lengths.tolist(), pieces.following.tolist(), strict=True):
            assert len(ids) == length > 0
            assert following == follows.get(int(ids[-1]), -100)
            tokens += ids.tolist()
    for epoch in range(epochs):
        seen = tokens[epoch * stream.size : (epoch + 1) * stream.size]
        assert sorted(seen) == sorted(token for document in documents for token in document)
        assert all(b == follows[a] for a, b in pairwise(seen) if a in follows), "documents stay whole"


def _every_row_once(stream: GroupedRows, documents: list[list[int]]) -> None:
    found = [
        tuple(ids.tolist())
        for number in range(-(-2 * stream.size // stream.per_pack))
        for ids in stream.pieces(number).ids
    ]
    expected = sorted(tuple(document[:5]) for document in documents)
    assert sorted(found[: stream.size]) == sorted(found[stream.size : 2 * stream.size]) == expected


# ---- a function of seed, data and step


@pytest.mark.parametrize("mode", LARGE_MODES)
def test_ranks_decide_only_who_takes_what(folder: Path, mode: str) -> None:
    cfg = job(folder, global_batch_tokens=16 * 6, **LARGE_MODES[mode])
    expected = [sorted(rows(opened(cfg).batch(step))) for step in range(0, 40, 3)]
    assert len({str(batch) for batch in expected}) == len(expected)
    for ranks in (2, 3):
        each = [opened(cfg, rank, ranks) for rank in range(ranks)]
        for step in (39, 0, 18):
            assert sorted(row for rank in each for row in rows(rank.batch(step))) == expected[step // 3]


@pytest.mark.parametrize("mode", LARGE_MODES)
def test_any_step_can_be_asked_for(folder: Path, mode: str) -> None:
    cfg = job(folder, micro_num=2, **LARGE_MODES[mode])
    data = opened(cfg)
    forward = [rows(data.batch(step)) for step in range(72)]
    for step in (71, 3, 40, 0):
        assert rows(data.batch(step)) == rows(opened(cfg).batch(step)) == forward[step]
    assert data.epoch(0) == 0
    assert rows(opened(job(folder, micro_num=2, seed=8, **LARGE_MODES[mode])).batch(0)) != forward[0]


def test_ranks_of_a_node_share_it(folder: Path, tmp_path: Path) -> None:
    own = opened(job(folder, micro_num=2))
    cfg = job(folder, micro_num=2, use_shm=True, shm_path=str(tmp_path / "shm"))
    first, second = opened(cfg), opened(cfg)
    assert first.digest == second.digest == own.digest
    for step in (0, 5, 60, 1):
        assert rows(first.batch(step)) == rows(second.batch(step)) == rows(own.batch(step))
    first.close()
    assert rows(second.batch(90)) == rows(own.batch(90))
    second.close()
    assert list((tmp_path / "shm").iterdir()) == []


def test_grouping_into_shards_changes_nothing(tmp_path: Path) -> None:
    content = numbered(60, first=20)
    documents = {"b.txt": content[:30], "a.txt": content[30:50], "c.txt": content[50:]}
    at_once = dataset(tmp_path / "one", [[("a.txt", 20), ("b.txt", 30), ("c.txt", 10)]], documents)
    grown = dataset(tmp_path / "two", [[("b.txt", 12)], [("c.txt", 10)], [("a.txt", 20), ("b.txt", 18)]], documents)
    cfgs = [job(root / "train", micro_num=3, min_length=3) for root in (at_once, grown)]
    one, two = map(opened, cfgs)
    assert one.digest == two.digest
    assert (one.tokens, one.trained) == (two.tokens, two.trained)
    small = TrainData(cfgs[0], dp_rank=0, dp_size=1)
    assert (one.tokens, one.trained) == (small.tokens, small.trained)
    for step in range(20):
        assert rows(one.batch(step)) == rows(two.batch(step))
    other = {**documents, "a.txt": [[7000 + token for token in document] for document in documents["a.txt"]]}
    root = dataset(tmp_path / "three", [[("a.txt", 20), ("b.txt", 30), ("c.txt", 10)]], other)
    assert opened(job(root / "train", micro_num=3, min_length=3)).digest != one.digest


# ---- from which size on


def test_up_to_the_size_nothing_changes(folder: Path) -> None:
    cfg = job(folder, micro_num=2)
    small, last, large = (
        TrainData(cfg, dp_rank=0, dp_size=1),
        *(opened(cfg, scale=SMALL._replace(documents=n)) for n in (300, 299)),
    )
    assert small.digest == last.digest != large.digest
    assert rows(small.batch(0)) == rows(last.batch(0)) != rows(large.batch(0))
    assert SCALE.documents == 1 << 26


def test_internevos_order_is_its_own_at_any_size(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = job(folder, micro_num=2, packing="internevo")
    small, large = TrainData(cfg, dp_rank=0, dp_size=1), opened(cfg)
    assert small.digest == large.digest
    assert rows(small.batch(3)) == rows(large.batch(3))
    assert "data.packing: internevo is InternEvo's order, which every process keeps whole" in caplog.text


def test_the_order_never_changes(folder: Path) -> None:
    """Whoever changes this order raises its version: runs that stopped would go on elsewhere."""
    data = opened(job(folder, micro_num=3))
    first = [data.batch(step).input_ids[:, 0].tolist() for step in (0, 1, 40)]
    assert first == GOLDEN
    assert data.digest.startswith(GOLDEN_DIGEST)


GOLDEN = [[2763, 147, 2762], [2779, 123, 1114], [1699, 1029, 717]]
GOLDEN_DIGEST = "c97ceec22939"


def test_what_has_no_documents(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_folder(tmp_path / "d", {"en": [[[1, 2]] * 60], "cn": [[[1]], []]})
    data = opened(job(folder, min_length=2))
    assert data.tokens == {"cn": 0, "en": 120}
    assert "data type cn has no document of at least min_length 2 tokens" in caplog.text
    assert set(data.batch(0).type_ids.flatten().tolist()) == {1}
    with pytest.raises(DataError, match=r"no document is left to train on \(data.min_length 3\)"):
        opened(job(folder, min_length=3))


# ---- the index


def test_the_index_is_made_once(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = job(folder, micro_num=2)
    with caplog.at_level("INFO"):
        expected = rows(opened(cfg).batch(3))
        assert rows(opened(cfg).batch(3)) == expected
    assert caplog.text.count("indexed 300 documents") == 1
    (index,) = (path for path in (tmp_path / "cache" / "corpora").iterdir() if path.is_dir())
    stored = index / "0-places.npy"
    stored.write_bytes(stored.read_bytes()[:-1] + b"\1")
    assert rows(opened(cfg).batch(3)) == expected
    assert "was damaged, and is made again" in caplog.text
    stored.write_bytes(b"")
    assert rows(opened(cfg).batch(3)) == expected
    shutil.rmtree(tmp_path / "cache" / "tokens")
    assert rows(opened(cfg).batch(3)) == expected
    assert "5 of 5 files of ids are not in the token cache any more" in caplog.text


def test_a_cache_that_may_only_be_read(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As another user's, or one that is mounted read-only: nothing is found out again, and nothing is decoded."""
    cfg = job(folder, micro_num=2)
    expected = rows(opened(cfg).batch(3))

    def read() -> None:
        caplog.clear()
        with caplog.at_level("INFO"):
            assert rows(opened(cfg).batch(3)) == expected
        told = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert told == [] and "indexed" not in caplog.text

    below = sorted((tmp_path / "cache").rglob("*"))
    for path in below:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert in_a_process_of_nobody(tmp_path, read) == 0
    finally:
        for path in below:
            path.chmod(0o755)


def test_a_changed_shard_is_another_index(folder: Path) -> None:
    before = opened(job(folder))
    write_bin(folder / "en" / "train_000.bin", [[1, 2, 3]] * 80)
    after = opened(job(folder))
    assert before.digest != after.digest
    assert after.tokens["en"] != before.tokens["en"]


def test_files_that_go_while_they_are_in_use(folder: Path, tmp_path: Path) -> None:
    cfg = job(folder, micro_num=2)
    expected = [rows(opened(cfg).batch(step)) for step in range(0, 60, 7)]
    data = opened(cfg)
    shutil.rmtree(tmp_path / "cache")
    assert [rows(data.batch(step)) for step in range(0, 60, 7)] == expected
    data = opened(cfg)
    (folder / "cn" / "train_000.bin.meta").unlink()
    with pytest.raises(DataError, match=r"cn/train_000\.bin\.meta: it cannot be read any more"):
        for step in range(60):
            data.batch(step)


def test_metas_of_other_tools(folder: Path) -> None:
    expected = rows(opened(job(folder)).batch(4))
    for number, meta in enumerate(sorted(folder.rglob("*.meta"))):
        content = np.load(meta)
        if len(content):  # 32 bits, a column in between, and numbers by columns in place of rows
            wide = np.stack([content[:, 0], content[:, 0], content[:, 1]], axis=1).astype(np.int32)
            np.save(meta.open("wb"), np.asfortranarray(wide) if number % 2 else wide)
    assert rows(opened(job(folder)).batch(4)) == expected


def test_without_room_for_ids(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DataError, match=r"no room for its ids in the token cache.*EVO_CACHE"):
        opened(job(folder))


def test_ids_that_are_gone_and_have_no_room_any_more(folder: Path, tmp_path: Path) -> None:
    """All of them in memory would be too much: that is said at the start, and where they go later, by the step."""
    cfg = job(folder)
    running = opened(cfg)
    shutil.rmtree(tmp_path / "cache" / "tokens")
    (tmp_path / "cache" / "tokens").write_text("not a folder")
    told = r"train_000\.bin: there is no room for its ids in the token cache \(Not a directory\).*EVO_CACHE"
    with pytest.raises(DataError, match=told):
        opened(cfg)
    with pytest.raises(DataError, match=told):
        for step in range(60):
            running.batch(step)


def test_finding_out_is_progress(folder: Path, tmp_path: Path) -> None:
    """It takes hours where there is much, and the watchdog ends what shows no sign of life."""

    def beats(call: Callable[[], object]) -> int:
        before, _ = pulse.beats()
        call()
        return pulse.beats()[0] - before

    documents = sum(len(np.load(meta)) for meta in folder.rglob("*.meta"))
    assert beats(lambda: opened(job(folder))) > documents
    shutil.rmtree(tmp_path / "cache" / "corpora")
    assert beats(lambda: opened(job(folder))) > 0  # checksums, and the index


# ---- mixing


@pytest.fixture(scope="module")
def orders_of_many() -> Iterator[np.ndarray]:
    """The documents of 8 epochs in their order, by number: [8, 2^13] of a token each, in groups of 64 blocks of 8."""
    count = 1 << 13
    with TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVO_CACHE", f"{temporary}/cache")
        write_folder(folder := Path(temporary, "d"), {"en": [[[number] for number in range(1, count + 1)]]})
        groups = Groups(open_blocks(folder, size=8).documents["en"], 64, seed=1, name="en", index=Index())
        stream = GroupedTokens(groups, count)
        yield np.stack([np.concatenate(stream.pieces(epoch).ids) - 1 for epoch in range(8)])


def test_neighbours_come_apart(orders_of_many: np.ndarray) -> None:
    """What follows a document is one of 511 of its group at random, 7 of which are of its block."""
    steps = np.diff(orders_of_many)
    assert np.count_nonzero(steps == 1) / steps.size == pytest.approx(7 / 8 / 511, rel=0.3)
    same_block = np.count_nonzero(np.diff(orders_of_many // 8) == 0)
    assert same_block / steps.size == pytest.approx(7 / 511, rel=0.1)


def test_every_stretch_is_a_sample_of_the_whole(orders_of_many: np.ndarray) -> None:
    """Means of groups scatter as those of 64 blocks drawn at random without replacement, and have no trend."""
    where = orders_of_many / orders_of_many.shape[1] - 0.5
    assert abs(np.corrcoef(where[:, :-1].flat, where[:, 1:].flat)[0, 1]) < 0.03
    means = where.reshape(8, 16, 512).mean(axis=2)
    assert means.std() == pytest.approx(np.sqrt(15 / 16 / 12 / 64), rel=0.2)
    trends = [np.corrcoef(np.arange(16), of_epoch)[0, 1] for of_epoch in means]
    assert abs(np.mean(trends)) < 0.3
    assert abs(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairwise(orders_of_many)])) < 0.02


def test_types_share_the_blocks_of_a_group() -> None:
    assert blocks_of_group(4000, 4000, 2048) == 2048
    assert [blocks_of_group(n, 10_000, 2048) for n in (5000, 3000, 2000)] == [1024, 615, 410]
    assert blocks_of_group(1, 10_000, 2048) == 256, "what few documents are drawn from is not as little as their share"
    assert blocks_of_group(0, 0, 3) == 1


def test_types_mix_in_proportion() -> None:
    order = WindowOrder([9000, 1000, 30], 10, 0, windows=10, most=1 << 20)
    located = [order.locate(position)[0] for position in range(1003)]
    for start in range(0, 1000, 100):
        count = Counter(located[start : start + 100])
        assert 8 <= count[1] <= 12
    assert Counter(located) == {0: 900, 1: 100, 2: 3}

"""Which documents come when: weights, InternEvo's order, and an order that grouping into shards does not change."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo_core.data import TrainData, data_types, validation_batches
from evo_core.data.inspection.find import find_shards
from evo_core.data.loader.mixing import PERIOD, WeightedOrder, shares
from evo_core.data.shards.folder import bin_files
from evo_core.errors import ConfigError, DataError
from tests.data.corpora import job, numbered, write_bin, write_folder

MODES: dict[str, dict[str, Any]] = {
    "packed": {},
    "into one": {"pack_sample_into_one": True},
    "unpacked": {"use_packed_dataset": False},
    "internevo": {"packing": "internevo"},
    "weighted": {"type_weights": {"cn": 2, "code": 0, "en": "1/2"}},
    "weighted, unpacked": {"type_weights": {"cn": 2, "code": 1, "en": 1}, "use_packed_dataset": False},
}


def rows(batch: Any) -> list[tuple]:
    arrays = (batch.input_ids, batch.labels, batch.positions, batch.type_ids, batch.cu_seqlens)
    return [tuple(tuple(array[i].tolist()) for array in arrays) for i in range(batch.micro_num)]


@pytest.mark.parametrize("mode", MODES)
def test_ranks_decide_only_who_takes_what(folder: Path, mode: str) -> None:
    cfg = job(folder, global_batch_tokens=16 * 6, **MODES[mode])
    expected = [sorted(rows(TrainData(cfg, dp_rank=0, dp_size=1).batch(step))) for step in range(40)]
    assert len({str(batch) for batch in expected}) == 40
    for dp_size in (2, 3):
        ranks = [TrainData(cfg, dp_rank=rank, dp_size=dp_size) for rank in range(dp_size)]
        for step in (39, 0, 17):
            assert sorted(row for rank in ranks for row in rows(rank.batch(step))) == expected[step]


def test_every_mode_has_a_digest_of_its_own(folder: Path) -> None:
    digests = {TrainData(job(folder, **options), dp_rank=0, dp_size=1).digest for options in MODES.values()}
    assert len(digests) == len(MODES)


# ---- weights


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=6).filter(lambda weights: sum(weights) > 0))
def test_shares_are_the_weights_rounded(weights: list[float]) -> None:
    found = shares(weights)
    assert sum(found) == PERIOD
    for weight, share in zip(weights, found, strict=True):
        assert (share == 0) == (weight == 0)
        assert abs(share - PERIOD * weight / sum(weights)) <= len(weights)


def test_shares_are_the_same_in_every_python() -> None:
    """Their sum is 1.0 by `sum` from Python 3.12 on, and a bit less before."""
    assert shares([0.3, 0.6, 0.1]) == [19661, 39322, 6553]


def test_weighted_packs_come_in_the_order_of_their_stream() -> None:
    order = WeightedOrder([3, 0, 1], [100, 100, 10], 10, seed=1)
    following = [0, 0, 0]
    for position in range(3 * PERIOD // 2):
        data_type, number = order.locate(position)
        assert number == following[data_type]
        following[data_type] += 1
    assert following[1] == 0
    assert abs(following[0] / following[2] - 3) < 0.05
    again = WeightedOrder([3, 0, 1], [100, 100, 10], 10, seed=1)
    assert [again.locate(PERIOD + n) for n in (5, 0)] == [order.locate(PERIOD + n) for n in (5, 0)]
    assert order.epoch_of(0) == 0
    assert order.epoch_of(PERIOD) == PERIOD // 4  # the third type has one pack, and a quarter of the positions


def test_a_small_type_with_a_large_weight_is_repeated(tmp_path: Path) -> None:
    documents = numbered(60)
    folder = write_folder(tmp_path / "d", {"en": [documents[:2]], "cn": [documents[2:]]})
    cfg = job(folder, type_weights={"en": 1, "cn": 1}, micro_num=4)
    data = TrainData(cfg, dp_rank=0, dp_size=1)
    seen = Counter(ids for step in range(100) for ids in data.batch(step).type_ids[:, 0].tolist())
    assert 150 < seen[0] < 250
    assert seen[0] + seen[1] == 400


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"en": 1, "cn": 1, "code": 1, "fr": 1}, "data.type_weights: there is no data type fr, only cn, code, en"),
        ({"en": 1, "cn": 1}, "data.type_weights: code has no weight (write code: 0 to leave it out)"),
        ({"en": 0, "cn": 0, "code": 0}, "data.type_weights: no weight is above 0"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainData(job(folder, type_weights=weights), dp_rank=0, dp_size=1)
    assert str(caught.value) == message


def test_a_weight_for_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d", {"en": [[[1, 2]]], "cn": [[]]})
    with pytest.raises(ConfigError, match="cn has no documents"):
        TrainData(job(folder, type_weights={"en": 1, "cn": 1}), dp_rank=0, dp_size=1)


# ---- min_length_dict


def test_a_min_length_for_some_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    documents = [[1], [2, 3], [4, 5, 6]]
    folder = write_folder(tmp_path / "d", {"en": [documents, documents], "cn": [documents]})

    def tokens(**data: Any) -> dict[str, int]:
        return TrainData(job(folder, **data), dp_rank=0, dp_size=1).tokens

    assert tokens(min_length_dict={"/cn/": 3}) == {"cn": 3, "en": 12}
    assert tokens(min_length=2, min_length_dict={"en/train_001": 3}) == {"cn": 5, "en": 8}
    assert tokens(min_length=3, min_length_dict={"/cn/": 0}) == {"cn": 6, "en": 6}
    tokens(min_length_dict={"/english/": 3, "/en/": 1})
    assert [record.message for record in caplog.records if "min_length_dict" in record.message] == [
        f"data.min_length_dict: '/english/' is in the path of no file of {folder}, e.g. /cn/train_000.bin"
    ]
    with pytest.raises(
        ConfigError, match=r"data.min_length_dict: /en/ and _001 are both in the path /en/train_001.bin"
    ):
        tokens(min_length_dict={"/en/": 1, "_001": 2})


# ---- InternEvo's order, from its description alone


def internevo_packs(folder: Path, packed_length: int, min_length: int) -> list[list[int]]:
    """The tokens of all packs, files in the order in which InternEvo walks through folders."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        found += [Path(parent, name) for name in sorted(names) if name.endswith(".bin")]
    packs = []
    for path in found:
        samples = [json.loads(line)["tokens"] for line in path.read_text().splitlines()]
        samples = [sample for sample in samples if len(sample) >= min_length]
        indices = np.arange(len(samples))
        np.random.RandomState(1024).shuffle(indices)
        tokens = [token for index in indices for token in samples[index]]
        packs += [tokens[k * packed_length : (k + 1) * packed_length] for k in range(len(tokens) // packed_length)]
    return packs


def internevo_batches(
    count: int, micro_num: int, dp: int, seed: int, sizes: Iterator[int]
) -> Iterator[list[list[int]]]:
    """The packs of each step for each rank; `sizes` are micro-batches of the steps, micro_num in the end."""
    random = np.random.RandomState(seed)
    size = next(sizes)
    first = []
    while size < micro_num:  # the growing batch comes first, and what remains is cut to whole batches
        first.append(size)
        size = next(sizes)
    growing = sum(first) * dp
    while True:
        indices = np.arange(count)
        random.shuffle(indices)
        kept = growing + (count - growing) // (micro_num * dp) * micro_num * dp
        of_rank = [indices[:kept][rank::dp].tolist() for rank in range(dp)]
        while of_rank[0]:
            size = first.pop(0) if first else micro_num
            yield [own[:size] for own in of_rank]
            of_rank = [own[size:] for own in of_rank]
        growing = 0


@pytest.mark.parametrize(("micro_num", "dp", "rampup"), [(1, 1, ""), (3, 1, ""), (2, 2, ""), (4, 2, "2 1 3")])
def test_internevos_order(folder: Path, micro_num: int, dp: int, rampup: str) -> None:
    cfg = job(folder, packing="internevo", micro_num=micro_num, min_length=3, seed=11, rampup_batch_size=rampup)
    ranks = [TrainData(cfg, dp_rank=rank, dp_size=dp) for rank in range(dp)]
    packs = internevo_packs(folder, 16, 3)
    sizes = (min(2 + step // 3, 4) if rampup else micro_num for step in range(10**9))
    expected = internevo_batches(len(packs), micro_num, dp, 11, sizes)
    steps = 3 * len(packs) // (micro_num * dp)
    batches = [[[packs[n] for n in own] for own in next(expected)] for _ in range(steps)]
    assert [[rank.batch(step).input_ids.tolist() for rank in ranks] for step in range(steps)] == batches
    assert [ranks[0].batch(step).input_ids.tolist() for step in (steps - 1, 1)] == [batches[-1][0], batches[1][0]]
    assert ranks[0].epoch(0) == 0
    assert ranks[0].epoch(steps) in (2, 3)


def test_internevo_reads_the_files_of_a_folder_before_its_sub_folders(tmp_path: Path) -> None:
    documents = numbered(100, first=20)
    names = ["en/a", "en/sub/x", "en/z", "cn/b/y", "cn/a/z", "cn/c", "en/sub/deep/b"]
    for number, name in enumerate(names):
        write_bin(tmp_path / f"train/{name}.bin", documents[number::7])
    assert [path.name[0] for path in bin_files(tmp_path / "train", "en")] == ["a", "z", "x", "b"]
    data = TrainData(job(tmp_path / "train", packing="internevo"), dp_rank=0, dp_size=1)
    packs = internevo_packs(tmp_path / "train", 16, 0)
    order = np.random.RandomState(7).permutation(len(packs))
    assert [data.batch(step).input_ids.tolist() for step in range(len(packs))] == [[packs[n]] for n in order]


def test_links_and_hidden_names_of_a_folder_of_shards(tmp_path: Path) -> None:
    """A link is followed, but not back to where it leads from; what is hidden is no data."""
    folder, elsewhere = tmp_path / "train", tmp_path / "elsewhere"
    for path in (folder / "en/a.bin", elsewhere / "b.bin", folder / "en/.git/c.bin", folder / ".tmp/en/d.bin"):
        write_bin(path, [[1, 2]])
    (folder / "en/link").symlink_to(elsewhere)
    (folder / "en/loop").symlink_to(folder / "en")
    (elsewhere / "back").symlink_to(folder / "en")
    (folder / "cn").symlink_to(elsewhere)
    assert data_types(folder) == ("cn", "en")
    assert bin_files(folder, "en") == [folder / "en/a.bin", folder / "en/link/b.bin"]
    assert [shard.path for shard in find_shards(folder)] == [
        *(folder / "cn" / name for name in ("b.bin", "back/a.bin")),
        *bin_files(folder, "en"),
    ]


def test_too_few_packs_for_a_batch(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d", {"en": [[[*range(1, 40)]]]})
    with pytest.raises(DataError, match="2 packs are fewer than the 3 that one step needs"):
        TrainData(job(folder, packing="internevo", micro_num=3), dp_rank=0, dp_size=1)


# ---- grouping


def dataset(root: Path, groups: Sequence[Sequence[tuple[str, int]]], documents: dict[str, list[list[int]]]) -> Path:
    """A dataset of one type whose shards hold (origin, number of its next documents) each; says where they are from."""
    names, shards = sorted(documents), {}
    taken = dict.fromkeys(documents, 0)
    for number, group in enumerate(groups):
        content: list[list[int]] = []
        runs = []
        for name, count in group:
            runs.append((len(content), names.index(name), taken[name]))
            content += documents[name][taken[name] : taken[name] + count]
            taken[name] += count
        for side in ("train", "valid"):
            write_bin(root / side / "en" / f"train_{number:03d}.bin", content)
            shards[f"{side}/en/train_{number:03d}.bin"] = runs
    write_bin(root / "train" / "cn" / "train_000.bin", [[7, 8, 9]])
    shards["train/cn/train_000.bin"] = [(0, 0, 0)]
    (root / "origins.json").write_text(json.dumps({"origins": names, "shards": shards}))
    return root


@pytest.mark.parametrize("mode", ["packed", "unpacked"])
def test_grouping_into_shards_changes_nothing(tmp_path: Path, mode: str) -> None:
    content = numbered(60, first=20)
    documents = {"b.txt": content[:30], "a.txt": content[30:50], "c.txt": content[50:]}
    at_once = dataset(tmp_path / "one", [[("a.txt", 20), ("b.txt", 30), ("c.txt", 10)]], documents)
    grown = dataset(tmp_path / "two", [[("b.txt", 12)], [("c.txt", 10)], [("a.txt", 20), ("b.txt", 18)]], documents)
    one, two = (
        TrainData(job(root / "train", micro_num=3, **MODES[mode]), dp_rank=0, dp_size=1) for root in (at_once, grown)
    )
    assert one.digest == two.digest
    for step in range(20):
        assert rows(one.batch(step)) == rows(two.batch(step))
    held_out = [
        [rows(b) for b in validation_batches(root / "valid", "en", seq_len=8, micro_bsz=2, dp_rank=0, dp_size=1)]
        for root in (at_once, grown)
    ]
    assert held_out[0] == held_out[1]
    documents["a.txt"] = [*documents["a.txt"][:-1], [5000 + token for token in documents["a.txt"][-1]]]
    other = dataset(tmp_path / "three", [[("a.txt", 20), ("b.txt", 30), ("c.txt", 10)]], documents)
    assert TrainData(job(other / "train", micro_num=3, **MODES[mode]), dp_rank=0, dp_size=1).digest != one.digest


def test_without_origins_files_count(tmp_path: Path) -> None:
    documents = numbered(20)
    one = write_folder(tmp_path / "one" / "d", {"en": [documents]})
    two = write_folder(tmp_path / "two" / "d", {"en": [documents[:7], documents[7:]]})
    other = write_folder(tmp_path / "three" / "d", {"en": [documents[7:], documents[:7]]})
    first, second, third = (TrainData(job(folder), dp_rank=0, dp_size=1) for folder in (one, two, other))
    assert rows(first.batch(3)) == rows(second.batch(3)) != rows(third.batch(3))
    assert first.digest == second.digest != third.digest


def test_internevos_order_goes_by_files_whatever_their_origins(tmp_path: Path) -> None:
    content = numbered(60, first=20)
    documents = {"b.txt": content[:30], "a.txt": content[30:]}
    root = dataset(tmp_path / "one", [[("b.txt", 30)], [("a.txt", 30)]], documents)
    data = TrainData(job(root / "train", packing="internevo"), dp_rank=0, dp_size=1)
    packs = internevo_packs(root / "train", 16, 0)
    order = np.random.RandomState(7).permutation(len(packs))
    assert data.batch(0).input_ids.tolist() == [packs[order[0]]]

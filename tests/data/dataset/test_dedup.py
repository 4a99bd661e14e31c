"""Repeated documents: exact copies, and near ones against datasketch and against the true overlap."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evo_core.data.dataset.build import ShardSource, write_shards
from evo_core.data.dataset.dedup import NearDuplicates, exact_duplicates, near_duplicates
from evo_core.data.shards.format import BinReader
from evo_core.errors import DataError
from tests.data.corpora import numbered, read_bin, write_bin


def shingles(document: list[int], width: int = 5) -> set[tuple[int, ...]]:
    return {tuple(document[i : i + width]) for i in range(max(len(document) - width + 1, 1))}


def overlap(a: list[int], b: list[int]) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def variant(document: list[int], changes: int, seed: int) -> list[int]:
    """The document with some tokens replaced by others that occur nowhere else."""
    random = np.random.RandomState(seed)
    changed = list(document)
    for position in random.choice(len(document), changes, replace=False):
        changed[position] = 10**6 + int(random.randint(10**6))
    return changed


@pytest.fixture
def corpus() -> list[list[int]]:
    """40 documents of 200 tokens, each followed somewhere by variants of growing distance."""
    originals = numbered(40, longest=1)
    originals = [list(range(1000 * n + 1, 1000 * n + 201)) for n in range(len(originals))]
    documents = list(originals)
    for changes in (0, 1, 2, 4, 8, 20, 60):
        documents += [variant(d, changes, 100 * changes + n) for n, d in enumerate(originals)]
    return documents


def signatures(tmp_path: Path, documents: list[list[int]], settings: NearDuplicates) -> np.ndarray:
    return settings.signatures(BinReader(write_bin(tmp_path / "d.bin", documents)))


def test_signatures_estimate_the_true_overlap(tmp_path: Path, corpus: list[list[int]]) -> None:
    settings = NearDuplicates(permutations=256)
    found = signatures(tmp_path, corpus, settings)
    errors = []
    for other in range(40, len(corpus)):
        estimate = float((found[other] == found[other % 40]).mean())
        errors.append(estimate - overlap(corpus[other], corpus[other % 40]))
    assert max(map(abs, errors)) < 5 * 0.5 / np.sqrt(256)
    assert abs(float(np.mean(errors))) < 0.01


def test_near_copies_are_those_that_datasketch_finds(tmp_path: Path, corpus: list[list[int]]) -> None:
    from datasketch import MinHash, MinHashLSH

    settings = NearDuplicates(threshold=0.8)
    removed = near_duplicates(signatures(tmp_path, corpus, settings), np.ones(len(corpus), bool), settings)
    theirs: Any = MinHashLSH(num_perm=128, params=settings.bands())
    oracle = []
    for number, document in enumerate(corpus):
        sketch: Any = MinHash(num_perm=128)
        sketch.update_batch([repr(s).encode() for s in shingles(document)])
        rivals = theirs.query(sketch)
        oracle.append(any(overlap(document, corpus[rival]) >= 0.8 for rival in rivals))
        if not oracle[-1]:
            theirs.insert(number, sketch)
    # Estimates differ near the threshold; away from it both must say the truth.
    clear = [n for n, d in enumerate(corpus) if abs(overlap(d, corpus[n % 40]) - 0.8) > 0.1]
    assert len(clear) > 200
    for number in clear:
        truth = number >= 40 and overlap(corpus[number], corpus[number % 40]) > 0.8
        assert bool(removed[number]) == truth == oracle[number], number
    assert (removed == np.array(oracle)).mean() > 0.9


def test_the_first_document_stays_and_chains_do_not_pull(tmp_path: Path) -> None:
    # b is near a, c is near b but not near a: c stays, since what it is near to is gone.
    a = list(range(1, 301))
    b = [*range(19, 301), *range(1001, 1019)]
    c = [*range(37, 301), *range(1001, 1037)]
    assert overlap(a, b) > 0.85 and overlap(b, c) > 0.85 and overlap(a, c) < 0.8
    settings = NearDuplicates(threshold=0.82, permutations=512)
    everything = np.ones(3, bool)
    assert near_duplicates(signatures(tmp_path, [a, b, c], settings), everything, settings).tolist() == [0, 1, 0]
    without_a = np.array([False, True, True])
    assert near_duplicates(signatures(tmp_path, [a, b, c], settings), without_a, settings).tolist() == [0, 0, 1]


def test_bands_find_pairs_at_the_threshold() -> None:
    for threshold, permutations in itertools.product((0.5, 0.7, 0.8, 0.9, 1.0), (32, 128, 256)):
        bands, width = NearDuplicates(threshold, permutations).bands()
        assert bands * width <= permutations
        assert 1 - (1 - threshold**width) ** bands >= 0.98


def test_exact_copies() -> None:
    random = np.random.RandomState(0)
    hashes = random.randint(0, 3, size=(200, 2)).astype(np.uint64)
    active = random.rand(200) < 0.8
    copies = exact_duplicates(hashes, active)
    seen: set[tuple[int, ...]] = set()
    for document in range(200):
        key = tuple(hashes[document].tolist())
        assert copies[document] == (active[document] and key in seen)
        if active[document]:
            seen.add(key)
    assert not exact_duplicates(np.zeros((0, 2), np.uint64), np.zeros(0, bool)).any()


def test_what_is_removed_from_a_dataset_is_counted(tmp_path: Path) -> None:
    long = [list(range(1000 * n + 1, 1000 * n + 201)) for n in range(20)]
    en = [*long[:10], long[0]]
    cn = [long[3], variant(long[4], 1, 0), *long[10:]]
    sources = [
        ShardSource("en", write_bin(tmp_path / "en.bin", en), "1.txt"),
        ShardSource("cn", write_bin(tmp_path / "cn.bin", cn), "2.txt"),
    ]
    for dedup, removed in {"exact": {"en": (1, 0), "cn": (1, 0)}, "near": {"en": (1, 0), "cn": (1, 1)}}.items():
        statistics = write_shards(
            sources,
            tmp_path / dedup,
            valid_fraction=0,
            shard_tokens=10**6,
            dedup=dedup,  # type: ignore[arg-type]
        )
        for name, (exact, near) in removed.items():
            assert statistics["types"][name]["removed"] == {"exact": exact, "near": near}
        train = read_bin(tmp_path / dedup / "train" / "en" / "train_000.bin")
        assert train == long[:10], "the first of each stays"
        other = read_bin(tmp_path / dedup / "train" / "cn" / "train_000.bin")
        assert other == (cn[1:] if dedup == "exact" else long[10:])
    untouched = write_shards(sources, tmp_path / "none", valid_fraction=0, shard_tokens=10**6)
    assert untouched["types"]["en"]["documents"] == 11
    assert "removed" not in untouched["types"]["en"]


def test_settings_out_of_range() -> None:
    for settings in ({"threshold": 0}, {"threshold": 1.1}, {"permutations": 8}, {"shingle": 0}):
        with pytest.raises(DataError, match="near"):
            NearDuplicates(**settings)  # type: ignore[arg-type]

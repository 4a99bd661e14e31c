"""Held-out batches: every token but a document's first is predicted exactly once, on one rank."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evo_core.data import Batch, data_types, validation_batches
from evo_core.errors import DataError
from tests.data.corpora import numbered, write_folder


def _targets(batches: list[Batch]) -> Counter[tuple[int, int]]:
    """(input, label) of every position that is trained on."""
    pairs: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        kept = batch.labels >= 0
        pairs.update(zip(batch.input_ids[kept].tolist(), batch.labels[kept].tolist(), strict=True))
    return pairs


@given(st.integers(0, 5), st.tuples(st.integers(1, 9), st.integers(1, 4)), st.integers(1, 4), st.integers(1, 40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_every_token_is_a_target_once(
    tmp_path_factory: pytest.TempPathFactory, seed: int, shape: tuple[int, int], dp_size: int, longest: int
) -> None:
    documents = numbered(25, seed=seed, longest=longest)
    folder = write_folder(tmp_path_factory.mktemp("d"), {"en": [documents[:7], documents[7:]], "cn": [[[1, 2]]]})
    seq_len, micro_bsz = shape
    per_rank = [
        list(validation_batches(folder, "en", seq_len=seq_len, micro_bsz=micro_bsz, dp_rank=rank, dp_size=dp_size))
        for rank in range(dp_size)
    ]
    assert len({len(batches) for batches in per_rank}) == 1, "every rank takes as many steps"
    everything = [batch for batches in per_rank for batch in batches]
    expected = Counter(pair for d in documents for pair in itertools.pairwise(d))
    assert _targets(everything) == expected
    for batch in everything:
        assert batch.input_ids.shape == (1, seq_len * micro_bsz)
        assert set(batch.type_ids.flatten().tolist()) == {1}
        assert max(batch.cu_seqlens[0].diff().tolist()) <= seq_len


def test_what_a_token_is_predicted_from_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"en": [numbered(40, longest=30)]})

    def contexts(micro_bsz: int, dp_size: int) -> set[tuple[int, ...]]:
        found = set()
        for rank in range(dp_size):
            for batch in validation_batches(
                folder, "en", seq_len=8, micro_bsz=micro_bsz, dp_rank=rank, dp_size=dp_size
            ):
                cuts = batch.cu_seqlens[0].tolist()
                for start, end in itertools.pairwise(cuts):
                    if int(batch.labels[0, start]) >= 0:
                        found.add(tuple(batch.input_ids[0, start:end].tolist()))
        return found

    assert contexts(1, 1) == contexts(3, 1) == contexts(2, 3)


def test_packs_are_well_filled(tmp_path: Path) -> None:
    documents = numbered(400, longest=60)
    folder = write_folder(tmp_path, {"en": [documents]})
    batches = list(validation_batches(folder, "en", seq_len=64, micro_bsz=2, dp_rank=0, dp_size=1))
    assert sum(len(d) - 1 for d in documents) > 0.95 * 128 * len(batches)


def test_context_is_no_target(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"en": [[[1, -2, 3, 0]]]})

    def labels(**options: bool) -> list[int]:
        (batch,) = validation_batches(
            folder,
            "en",
            seq_len=4,
            micro_bsz=1,
            dp_rank=0,
            dp_size=1,
            **options,  # type: ignore[arg-type]
        )
        assert batch.input_ids.tolist() == [[1, 2, 3, 0]]
        return batch.labels[0].tolist()

    assert labels() == [-100, 3, 0, -100]
    assert labels(mask_token_zero=True) == [-100, 3, -100, -100]


def test_random_data() -> None:
    assert data_types(None) == ("en", "cn", "code")
    batches = list(validation_batches(None, "en", seq_len=64, micro_bsz=4, dp_rank=0, dp_size=2, vocab_size=50))
    assert batches
    assert all(int(batch.input_ids.max()) < 50 for batch in batches)
    assert list(validation_batches(None, "cn", seq_len=64, micro_bsz=4, dp_rank=0, dp_size=1)) == []


def test_wrong_folders_are_named_at_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"en": [[[1, 200]]]})
    with pytest.raises(DataError, match="no data type fr, only en"):
        validation_batches(folder, "fr", seq_len=4, micro_bsz=1, dp_rank=0, dp_size=1)
    with pytest.raises(DataError, match="token id 200 is outside"):
        validation_batches(folder, "en", seq_len=4, micro_bsz=1, dp_rank=0, dp_size=1, vocab_size=100)
    with pytest.raises(DataError, match="no such data folder"):
        data_types(tmp_path / "missing")

"""For every way to pack: no token is lost or invented, and no label comes from another document.

Every token of a corpus has an id of its own, so a batch says of each of its positions which token it is. Held-out data
are tried in test_valid_data, streams in test_hf_stream as well.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evo_core.data import TrainData, validation_batches
from evo_core.data.loader.hf_stream import StreamData
from evo_core.data.tokenize.tokenizers import Tokenizer
from tests.data.corpora import job, write_folder

IGNORE = -100
Documents = list[list[int]]
Shape = tuple[int, int]
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 4))


@st.composite
def corpora(draw: st.DrawFn) -> dict[str, list[Documents]]:
    """Documents by type and file: many small files, some without any; some tokens are context."""
    lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=14))
    signs = st.sampled_from([1, 1, 1, -1]) if draw(st.booleans()) else st.just(1)
    result: dict[str, list[Documents]] = {}
    first = draw(st.integers(0, 1))
    for length in lengths:
        document = [token * draw(signs) for token in range(first, first + length)]
        files = result.setdefault(draw(st.sampled_from(["cn", "en"])), [[]])
        if draw(st.booleans()):
            files.append([])
        files[-1].append(document)
        first += length
    return result


def flat(types: dict[str, list[Documents]]) -> Documents:
    return [document for files in types.values() for documents in files for document in documents]


class KnownTokens:
    """What a corpus says of each token: the one after it, and its document."""

    def __init__(self, documents: Documents) -> None:
        self.following = {abs(a): b for d in documents for a, b in itertools.pairwise(d)}
        self.document = {abs(token): n for n, d in enumerate(documents) for token in d}

    def label(self, token: int, masked: bool = False) -> int:
        target = self.following.get(token, IGNORE)
        return IGNORE if target < 0 or (masked and target == 0) else target


def micro_batches(batch: Any) -> Iterator[tuple[list[int], list[int], list[int], list[int], list[int]]]:
    for i in range(batch.micro_num):
        arrays = (batch.input_ids, batch.labels, batch.positions, batch.type_ids, batch.cu_seqlens)
        yield tuple(array[i].tolist() for array in arrays)  # type: ignore[misc]


def check_sequences(cuts: list[int], positions: list[int], seq_len: int, packed_length: int) -> None:
    assert cuts[0] == 0
    assert cuts[-1] == packed_length == len(positions)
    for start, end in itertools.pairwise(cuts):
        assert 0 < end - start <= seq_len
        assert positions[start:end] == list(range(end - start))


def open_data(folder: str, types: dict[str, list[Documents]], shape: Shape, **data: Any) -> TrainData:
    write_folder(Path(folder), types)
    cfg = job(Path(folder), seq_len=shape[0], micro_bsz=shape[1], **data)
    return TrainData(cfg, dp_rank=0, dp_size=1)


@given(corpora(), SHAPES, st.booleans(), st.booleans(), st.integers(1, 3))
@settings(max_examples=60)
def test_packed(types: dict[str, list[Documents]], shape: Shape, into_one: bool, masked: bool, micro_num: int) -> None:
    documents = flat(types)
    known, tokens, packed_length = KnownTokens(documents), sum(map(len, documents)), shape[0] * shape[1]
    by_type = [[abs(token) for document in flat({name: files}) for token in document] for name, files in types.items()]
    with tempfile.TemporaryDirectory() as folder:
        options = {"pack_sample_into_one": into_one, "mask_token_zero": masked, "micro_num": micro_num}
        data = open_data(folder, types, shape, **options)
        seen: Counter[int] = Counter()
        # A type of fewer tokens than a pack comes only once in several epochs.
        epochs = 3 + packed_length // min(len(own) for own in by_type)
        steps = epochs * tokens // (packed_length * micro_num) + 1
        for step in range(steps):
            for ids, labels, positions, type_ids, cuts in micro_batches(data.batch(step)):
                seen.update(ids)
                assert labels == [known.label(token, masked) for token in ids]
                check_sequences(cuts, positions, shape[0], packed_length)
                if into_one:
                    assert cuts == list(range(0, packed_length + 1, shape[0]))
                else:
                    for start, end in itertools.pairwise(cuts):
                        assert len({known.document[token] for token in ids[start:end]}) == 1
                assert len(set(type_ids)) == 1
        assert set(seen) == set(known.document), "every token of every file, however small"
        for own in by_type:
            counts = [seen[token] for token in own]
            assert max(counts) - min(counts) <= 3, "alike, but for packs that reach into the next epoch"


@given(corpora(), SHAPES, st.booleans())
@settings(max_examples=40)
def test_one_type_packed_is_its_documents_again_and_again(
    types: dict[str, list[Documents]], shape: Shape, masked: bool
) -> None:
    documents = flat(types)
    tokens, packed_length = sum(map(len, documents)), shape[0] * shape[1]
    with tempfile.TemporaryDirectory() as folder:
        data = open_data(folder, {"en": [[document] for document in documents]}, shape, mask_token_zero=masked)
        order = data._streams[0]
        inputs: list[int] = []
        for number in range(-(-3 * tokens // packed_length)):
            inputs += [abs(int(token)) for part in order.pieces(number).ids for token in part]
        for epoch in range(3):
            assert sorted(inputs[epoch * tokens : (epoch + 1) * tokens]) == sorted(
                abs(token) for document in documents for token in document
            ), "each token once in each epoch"


@given(corpora(), SHAPES, st.booleans())
@settings(max_examples=40)
def test_unpacked(types: dict[str, list[Documents]], shape: Shape, masked: bool) -> None:
    seq_len, micro_bsz = shape
    documents = flat(types)
    known = KnownTokens([document[:seq_len] for document in documents])
    by_first = {abs(document[0]): document[:seq_len] for document in documents}
    count = len(documents)
    with tempfile.TemporaryDirectory() as folder:
        data = open_data(folder, types, shape, use_packed_dataset=False, mask_token_zero=masked)
        seen: Counter[int] = Counter()
        for step in range(3 * count // micro_bsz + len(types)):
            for ids, labels, positions, _, cuts in micro_batches(data.batch(step)):
                assert cuts == list(range(0, seq_len * micro_bsz + 1, seq_len))
                check_sequences(cuts, positions, seq_len, seq_len * micro_bsz)
                for start, end in itertools.pairwise(cuts):
                    document = by_first[ids[start]]
                    padding = [IGNORE] * (seq_len - len(document))
                    assert ids[start:end] == [abs(token) for token in document] + [0] * len(padding)
                    expected = [known.label(abs(token), masked) for token in document]
                    assert labels[start:end] == expected + padding
                    seen[ids[start]] += 1
        assert set(seen) == set(by_first), "a row for every document"


@given(corpora(), SHAPES, st.integers(1, 2), st.booleans())
@settings(max_examples=40)
def test_internevos_order_drops_tails_and_nothing_else(
    types: dict[str, list[Documents]], shape: Shape, micro_num: int, into_one: bool
) -> None:
    packed_length = shape[0] * shape[1]
    documents = flat(types)
    known = KnownTokens(documents)
    sizes = [sum(map(len, file)) for files in types.values() for file in files]
    packs = sum(size // packed_length for size in sizes)
    steps = packs // micro_num
    if not steps:
        return
    with tempfile.TemporaryDirectory() as folder:
        options = {"packing": "internevo", "micro_num": micro_num, "pack_sample_into_one": into_one}
        data = open_data(folder, types, shape, **options)
        for epoch in range(2):
            seen: Counter[int] = Counter()
            for step in range(epoch * steps, (epoch + 1) * steps):
                for ids, labels, positions, _, cuts in micro_batches(data.batch(step)):
                    seen.update(ids)
                    assert labels == [known.label(token) for token in ids]
                    check_sequences(cuts, positions, shape[0], packed_length)
            assert set(seen.values()) == {1}, "nothing twice"
            assert len(seen) == steps * micro_num * packed_length
            if packs % micro_num == 0:
                for file in itertools.chain(*types.values()):
                    own = {abs(token) for document in file for token in document}
                    assert len(own & set(seen)) == len(own) // packed_length * packed_length


@given(corpora(), SHAPES, st.integers(1, 3))
@settings(max_examples=30)
def test_held_out(types: dict[str, list[Documents]], shape: Shape, ranks: int) -> None:
    known = KnownTokens(flat(types))
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), types)
        seen: Counter[tuple[int, int]] = Counter()
        for name, rank in itertools.product(types, range(ranks)):
            batches = validation_batches(
                folder, name, seq_len=shape[0], micro_bsz=shape[1], dp_rank=rank, dp_size=ranks
            )
            for ids, labels, positions, _, cuts in itertools.chain.from_iterable(map(micro_batches, batches)):
                seen.update((token, label) for token, label in zip(ids, labels, strict=True) if label != IGNORE)
                check_sequences(cuts, positions, shape[0], shape[0] * shape[1])
    assert seen == Counter((token, b) for token, b in known.following.items() if b >= 0)


class Letters(Tokenizer):
    """A token for each letter, whose id is its number."""

    vocab_size, bos_id, eos_id, pad_id, digest = 1 << 16, None, None, None, "letters"
    path = Path("letters")

    def decode(self, ids: Any) -> str:
        return "".join(chr(token) for token in ids)

    def encode_with_offsets(self, text: str) -> list[tuple[int, int, int]]:
        return [(ord(letter), at, at + 1) for at, letter in enumerate(text)]

    def token_id(self, piece: str) -> int | None:
        return ord(piece) if len(piece) == 1 else None

    def piece(self, token: int) -> str:
        return chr(token)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [[ord(letter) for letter in text] for text in texts]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), SHAPES, st.integers(1, 2))
@settings(max_examples=25)
def test_stream(lengths: list[int], shape: Shape, ranks: int) -> None:
    seq_len, packed_length = shape[0], shape[0] * shape[1]
    # From the letter 0x4e00 on there are 20,992 Chinese characters.
    starts = np.cumsum([0x4E00, *lengths]).tolist()
    documents = [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=False)]
    known = KnownTokens([document[:seq_len] for document in documents])
    if len(documents) < ranks:
        return
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("evo_core.data.loader.hf_stream.load_tokenizer", lambda path: Letters())
        lines = [json.dumps({"text": "".join(map(chr, document))}) + "\n" for document in documents]
        (Path(folder) / "texts.jsonl").write_text("".join(lines))
        settings = {"type": "hf", "tokenizer_path": "letters", "seq_len": seq_len, "micro_bsz": shape[1]}
        cfg = job(Path(folder), **settings)
        for rank in range(ranks):
            data = StreamData(cfg, dp_rank=rank, dp_size=ranks)
            own = [document[:seq_len] for document in documents[rank::ranks]]
            ids_seen: list[int] = []
            while len(ids_seen) < 3 * sum(map(len, own)):
                for ids, labels, positions, _, cuts in micro_batches(data.draw(0)[0]):
                    ids_seen += [token for token in ids if token]
                    assert labels == [known.label(token) for token in ids]
                    check_sequences(cuts, positions, seq_len, packed_length)
            endless = itertools.islice(itertools.cycle(itertools.chain.from_iterable(own)), len(ids_seen))
            assert ids_seen == list(endless), "every text, cut to seq_len, in its order"

"""n-gram baselines against the formula computed with dictionaries."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from evo_core.errors import DataError
from evo_core.evaluate.ngram import NgramModel, Pairs, ngram_baselines
from tests.data.corpora import write_folder

Documents = list[list[int]]


def _random(count: int, vocab_size: int, seed: int) -> Documents:
    random = np.random.RandomState(seed)
    return [random.zipf(1.5, random.randint(1, 30)).clip(0, vocab_size - 1).tolist() for _ in range(count)]


def _pairs(documents: Documents) -> list[tuple[int, int]]:
    return [(abs(a), b) for d in documents for a, b in itertools.pairwise(d) if b >= 0]


def _reference(train: Documents, valid: Documents, vocab_size: int, k: float, b: float) -> tuple[float, float]:
    pairs = Counter(_pairs(train))
    words = Counter(word for _, word in _pairs(train))
    before = Counter(previous for previous, _ in _pairs(train))
    total = sum(words.values())
    unigram = bigram = 0.0
    for previous, word in _pairs(valid):
        p = (words[word] + k) / (total + k * vocab_size)
        unigram -= math.log(p)
        bigram -= math.log((pairs[previous, word] + b * p) / (before[previous] + b))
    return unigram / len(_pairs(valid)), bigram / len(_pairs(valid))


def test_against_brute_force(tmp_path: Path) -> None:
    train = {"en": [_random(60, 50, 1), _random(5, 50, 2)], "cn": [_random(40, 50, 3)]}
    valid = {"en": [_random(9, 50, 4)], "cn": [_random(9, 50, 5), [[1, -2, 3, -4], [7]]]}
    write_folder(tmp_path / "train", train)
    write_folder(tmp_path / "valid", valid)
    result = ngram_baselines(tmp_path / "train", tmp_path / "valid", vocab_size=60)
    everything = [d for files in train.values() for documents in files for d in documents]
    held_out = {name: [d for documents in files for d in documents] for name, files in valid.items()}
    held_out["all"] = held_out["en"] + held_out["cn"]
    for name, documents in held_out.items():
        scores = result.total if name == "all" else result.types[name]
        unigram, bigram = _reference(everything, documents, 60, result.k, result.b)
        assert scores["unigram"].loss == pytest.approx(unigram, rel=1e-12)
        assert scores["bigram"].loss == pytest.approx(bigram, rel=1e-12)
        assert scores["bigram"].tokens == len(_pairs(documents))
        assert scores["unigram"].perplexity == pytest.approx(math.exp(unigram))
    assert result.train_tokens == len(_pairs(everything))
    plain = result.to_dict()
    assert json.loads(json.dumps(plain))["types"]["en"]["unigram"]["loss"] == result.types["en"]["unigram"].loss


@pytest.mark.parametrize("vocab_size", [7, 100_000])
def test_both_are_distributions(vocab_size: int) -> None:
    random = np.random.RandomState(0)
    model = NgramModel(Pairs(random.randint(0, 7, 200), random.randint(0, 7, 200)), vocab_size)
    model.k, model.b = 0.3, 2.5
    every = np.arange(vocab_size)
    for previous in (0, 3, vocab_size - 1):
        pairs = Pairs(np.full(vocab_size, previous), every)
        assert model.unigram(pairs).sum() == pytest.approx(1)
        assert model.bigram(pairs).sum() == pytest.approx(1)


def test_the_constants_fit_the_data(tmp_path: Path) -> None:
    """Tokens that follow a rule leave the bigram nothing to smooth; tokens at random leave it nothing to learn."""
    rule = [[i % 40 for i in range(start, start + 20)] for start in range(400)]
    noise = np.random.RandomState(0).randint(0, 40, (400, 20)).tolist()
    losses = {}
    for name, documents in {"rule": rule, "noise": noise}.items():
        write_folder(tmp_path / name, {"en": [documents]})
        result = ngram_baselines(tmp_path / name, tmp_path / name, vocab_size=40)
        losses[name] = (result.total["unigram"].loss, result.total["bigram"].loss)
    assert losses["rule"][1] < 0.01
    assert losses["rule"][0] == pytest.approx(math.log(40), rel=0.01)
    assert losses["noise"][1] == pytest.approx(math.log(40), rel=0.05)


def test_a_part_of_the_training_data(tmp_path: Path) -> None:
    write_folder(tmp_path / "d", {"en": [_random(400, 50, 1)]})
    whole = ngram_baselines(tmp_path / "d", tmp_path / "d", vocab_size=50)
    part = ngram_baselines(tmp_path / "d", tmp_path / "d", vocab_size=50, max_train_tokens=1000)
    assert 500 < part.train_tokens < 1500 < whole.train_tokens
    masked = ngram_baselines(tmp_path / "d", tmp_path / "d", vocab_size=50, mask_token_zero=True)
    assert masked.train_tokens <= whole.train_tokens


def test_nothing_to_predict(tmp_path: Path) -> None:
    write_folder(tmp_path / "d", {"en": [[[1]]]})
    result = ngram_baselines(tmp_path / "d", tmp_path / "d", vocab_size=5)
    assert math.isnan(result.total["bigram"].loss)
    assert result.total["bigram"].tokens == 0


def test_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    write_folder(tmp_path / "d", {"en": [[[1, 9]]]})
    with pytest.raises(DataError, match="token id 9 is outside the vocabulary of 5"):
        ngram_baselines(tmp_path / "d", tmp_path / "d", vocab_size=5)

"""Unigram and bigram models of the training tokens: what a trained model has to beat.

With n(w) and n(v, w) the counts of tokens and of pairs in the training documents, N all tokens, V the
vocabulary's size:

- unigram: ``p(w) = (n(w) + k) / (N + k * V)`` (additive smoothing);
- bigram: ``p(w | v) = (n(v, w) + b * p(w)) / (n(v) + b)``, n(v) the pairs that begin with v: the pair counts
  interpolated with the unigram, which gets the weight ``b / (n(v) + b)`` (Dirichlet smoothing; MacKay and Peto,
  "A hierarchical Dirichlet language model", 1995).

k and b are chosen on every tenth training document, with counts from the others; then all are counted.
One model is trained on the documents of all types together. It is measured on each type's held-out documents, on
the same tokens as a language model: all but the first of a document, except context (negative ids).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evo_core.data.corpus.token_cache import TokenFile, open_token_files
from evo_core.data.shards.folder import bin_files, data_types
from evo_core.evaluate.perplexity import perplexity

MAX_TRAIN_TOKENS = 50_000_000

_CANDIDATES = np.geomspace(1e-3, 1e4, 29)
_FIT_EVERY = 10


@dataclass(frozen=True)
class NgramScore:
    """How well a model predicts held-out tokens.

    Attributes:
        loss: mean negative log-likelihood, nats per token; nan without tokens.
        tokens: tokens predicted.
    """

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)


@dataclass(frozen=True)
class Pairs:
    """Targets with the token before each.

    Attributes:
        previous, targets: int64 [n].
    """

    previous: np.ndarray
    targets: np.ndarray


class NgramModel:
    """Counts of training pairs, smoothed as the module says.

    Args:
        pairs: training data.
        vocab_size: every id is below it.
    """

    def __init__(self, pairs: Pairs, vocab_size: int) -> None:
        self.k, self.b = 1.0, 1.0
        self._vocab_size = vocab_size
        self._unigram = np.bincount(pairs.targets, minlength=vocab_size)
        self._before = np.bincount(pairs.previous, minlength=vocab_size)
        # Only pairs that occur are stored, sorted, so that 100,000 ids are no more trouble than 4,096.
        self._pairs, self._pair_counts = np.unique(self._pair_keys(pairs), return_counts=True)

    def unigram(self, pairs: Pairs) -> np.ndarray:
        """p(target), float64 [n]."""
        total = self._unigram.sum()
        return (self._unigram[pairs.targets] + self.k) / (total + self.k * self._vocab_size)

    def bigram(self, pairs: Pairs) -> np.ndarray:
        """p(target | previous), float64 [n]."""
        together = self._count(pairs) + self.b * self.unigram(pairs)
        return together / (self._before[pairs.previous] + self.b)

    def fit(self, pairs: Pairs) -> None:
        """Choose k, then b, to make pairs that were not counted most likely."""
        if not len(pairs.targets):
            return

        def best(set_value: Callable[[float], None], probability: Callable[[Pairs], np.ndarray]) -> None:
            losses = []
            for value in _CANDIDATES.tolist():
                set_value(value)
                losses.append(_loss(probability(pairs)))
            set_value(float(_CANDIDATES[int(np.argmin(losses))]))

        best(lambda value: setattr(self, "k", value), self.unigram)
        best(lambda value: setattr(self, "b", value), self.bigram)

    def _count(self, pairs: Pairs) -> np.ndarray:
        if not len(self._pairs):
            return np.zeros(len(pairs.targets), np.int64)
        keys = self._pair_keys(pairs)
        positions = np.minimum(np.searchsorted(self._pairs, keys), len(self._pairs) - 1)
        return np.where(self._pairs[positions] == keys, self._pair_counts[positions], 0)

    def _pair_keys(self, pairs: Pairs) -> np.ndarray:
        return pairs.previous * self._vocab_size + pairs.targets


@dataclass(frozen=True)
class Baselines:
    """Scores of both models on each type and on all types together.

    Attributes:
        types: for each type ``{"unigram": NgramScore, "bigram": NgramScore}``.
        total: the same over the tokens of all types.
        train_tokens: targets counted.
        k, b: the smoothing constants chosen.
    """

    types: Mapping[str, Mapping[str, NgramScore]]
    total: Mapping[str, NgramScore]
    train_tokens: int
    k: float
    b: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data: ``{"types": {type: {model: {loss, perplexity, tokens}}}, "total": {model: …}, …}``."""
        return {
            "types": {name: _plain(scores) for name, scores in self.types.items()},
            "total": _plain(self.total),
            "train_tokens": self.train_tokens,
            "k": self.k,
            "b": self.b,
        }


def ngram_baselines(
    train_folder: str | Path,
    valid_folder: str | Path,
    *,
    vocab_size: int,
    max_train_tokens: int = MAX_TRAIN_TOKENS,
    mask_token_zero: bool = False,
) -> Baselines:
    """Train both models on a folder of token shards and measure them on another.

    Args:
        train_folder, valid_folder: folders with a sub-folder per data type.
        vocab_size: every id must be below it.
        max_train_tokens: of more tokens than this, evenly spaced documents are counted.
        mask_token_zero: True leaves token 0 out of the targets.

    Raises:
        DataError: there is no data, or an id is outside the vocabulary.
    """
    files = [file for name in data_types(train_folder) for file in open_token_files(bin_files(train_folder, name))]
    for file in files:
        file.check(vocab_size)
    stride = max(1, math.ceil(sum(len(file.ids) for file in files) / max_train_tokens))

    def train_pairs(chosen: Callable[[np.ndarray], np.ndarray]) -> Pairs:
        parts, first = [], 0
        for file in files:
            numbers = np.arange(first, first + len(file))
            first += len(file)
            parts.append(_pairs(file, (numbers % stride == 0) & chosen(numbers // stride), mask_token_zero))
        return _joined(parts)

    fitted = NgramModel(train_pairs(lambda numbers: numbers % _FIT_EVERY != 0), vocab_size)
    fitted.fit(train_pairs(lambda numbers: numbers % _FIT_EVERY == 0))
    counted = train_pairs(lambda numbers: numbers >= 0)
    model = NgramModel(counted, vocab_size)
    model.k, model.b = fitted.k, fitted.b

    held_out: dict[str, Pairs] = {}
    for name in data_types(valid_folder):
        opened = open_token_files(bin_files(valid_folder, name))
        for file in opened:
            file.check(vocab_size)
        held_out[name] = _joined([_pairs(file, np.ones(len(file), bool), mask_token_zero) for file in opened])
    types = {name: _scores(model, pairs) for name, pairs in held_out.items()}
    total = _scores(model, _joined(list(held_out.values())))
    return Baselines(types, total, len(counted.targets), model.k, model.b)


def _scores(model: NgramModel, pairs: Pairs) -> dict[str, NgramScore]:
    tokens = len(pairs.targets)
    return {
        "unigram": NgramScore(_loss(model.unigram(pairs)), tokens),
        "bigram": NgramScore(_loss(model.bigram(pairs)), tokens),
    }


def _plain(scores: Mapping[str, NgramScore]) -> dict[str, dict[str, float]]:
    return {
        name: {"loss": score.loss, "perplexity": score.perplexity, "tokens": score.tokens}
        for name, score in scores.items()
    }


def _loss(probability: np.ndarray) -> float:
    return float(-np.log(probability).mean()) if len(probability) else math.nan


def _pairs(file: TokenFile, chosen: np.ndarray, mask_token_zero: bool) -> Pairs:
    """Targets of the chosen documents (bool [documents]) with the tokens before them."""
    bounds = np.stack([file.starts[:-1], file.starts[1:]], axis=1)[chosen]
    ids = np.concatenate([np.zeros(0, np.int32), *(file.ids[start:stop] for start, stop in bounds.tolist())])
    is_target = ids >= (1 if mask_token_zero else 0)
    lengths = bounds[:, 1] - bounds[:, 0]
    is_target[(np.cumsum(lengths) - lengths)[lengths > 0]] = False  # a document's first token
    positions = np.flatnonzero(is_target)
    return Pairs(np.abs(ids[positions - 1]).astype(np.int64), ids[positions].astype(np.int64))


def _joined(parts: list[Pairs]) -> Pairs:
    none = np.zeros(0, np.int64)
    return Pairs(
        np.concatenate([none, *(part.previous for part in parts)]),
        np.concatenate([none, *(part.targets for part in parts)]),
    )

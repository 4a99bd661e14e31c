"""Tests of the data side keep their cache to themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece
from tests.data.corpora import texts

# Where many tests share two cores, a deadline per example fails at random.
settings.register_profile("evo", deadline=None)
settings.load_profile("evo")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of 600 ids trained on the sample texts."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(texts(), path, vocab_size=600)
    return load_tokenizer(path)

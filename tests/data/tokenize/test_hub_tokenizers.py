"""Tokenizers named by a hub id, from a cache that stands in for the hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from evo_core.data.tokenize.tokenizers import Tokenizer, load_tokenizer
from evo_core.errors import DataError
from tests.data.corpora import texts


@pytest.fixture
def byte_level(tmp_path: Path) -> Path:
    """A tokenizer.json of 300 ids."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(texts(), trainer)
    library.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model hub's cache as its library lays it out, with one repository and no way to the hub itself."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    return snapshot


def test_a_hub_id_stands_for_its_tokenizer(hub: Path, tokenizer: Tokenizer, byte_level: Path) -> None:
    shutil.copy(tokenizer.path, hub / "tokenizer.model")
    (hub / "tokenization_name.py").write_text("raise SystemExit('code of others was run')")
    loaded = load_tokenizer("owner/name")
    assert loaded.digest == tokenizer.digest
    assert loaded.path == hub / "tokenizer.model"
    shutil.copy(byte_level, hub)
    assert load_tokenizer("owner/name").vocab_size == 300


def test_without_a_network_the_local_form_is_named(hub: Path) -> None:
    with pytest.raises(DataError, match=r"other/name: .*cannot be fetched.*name its folder"):
        load_tokenizer("other/name")
    with pytest.raises(DataError, match=r"expected tokenizer\.json"):
        load_tokenizer("owner/name")

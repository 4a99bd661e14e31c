"""`tokenizer.train`: a SentencePiece tokenizer from the raw text itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from evo_core.storage.files import link_or_copy
from tasks import kind
from tasks.kind import Facts, Input, Kind, StepContext
from tasks.raw.listing import read_listing

TOKENIZER = "tokenizer"
"""Folder in an artifact that holds its tokenizer, as `evo_core.data.tokenize.tokenizers.load_tokenizer` reads it."""

_OF_A_MODEL = Path("model") / TOKENIZER
"""Where it lies in the artifact of a model."""


def tokenizer_in(artifact: Path) -> Path:
    """Where the tokenizer of an artifact lies: its own, or that of the model in it."""
    own = artifact / TOKENIZER
    return own if own.is_dir() else artifact / _OF_A_MODEL


def tokenizer_fact(facts: Facts) -> Path | None:
    """The tokenizer that facts name, if it is there to be looked at."""
    named = facts.get("tokenizer")
    return Path(named) if named is not None and Path(named).exists() else None


def keep_tokenizer(source: Path, artifact: Path) -> str:
    """Put every file of the tokenizer at `source` into an artifact's folder; returns the tokenizer's digest."""
    from evo_core.data.tokenize.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(source)
    for file in tokenizer.files:
        link_or_copy(file, artifact / TOKENIZER / file.name)
    return tokenizer.digest


class Params(kind.Params):
    """What the tokenizer is."""

    vocab_size: int = Field(ge=300, description="pieces, the 256 bytes and the special ids included")
    text_keys: list[str] = Field(["text"], description="fields of a JSON record that hold text")


class TrainTokenizer(Kind[Params, kind.Runtime]):
    """Trains on the documents of every file, in the order of the listing."""

    name = "tokenizer.train"
    inputs = {"raw": Input("raw")}
    output = "tokenizer"
    params_type = Params

    def facts(self, params: Params, runtime: kind.Runtime, facts: Mapping[str, Facts]) -> Facts:
        return {"vocab_size": params.vocab_size}

    def run(self, ctx: StepContext[Params, kind.Runtime]) -> dict[str, Any]:
        from evo_core.data.raw.documents import read_documents
        from evo_core.data.tokenize.tokenizers import load_tokenizer, train_sentencepiece

        files = read_listing(ctx.inputs["raw"])
        ctx.say(f"training a tokenizer of {ctx.params.vocab_size} pieces on {len(files)} files")

        def texts() -> Iterator[str]:
            for file in files:
                yield from read_documents(file.uri, ctx.params.text_keys)

        model = ctx.folder / TOKENIZER / "tokenizer.model"
        model.parent.mkdir()
        train_sentencepiece(texts(), model, vocab_size=ctx.params.vocab_size)
        tokenizer = load_tokenizer(model)
        return {"vocab_size": tokenizer.vocab_size, "digest": tokenizer.digest}

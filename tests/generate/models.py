"""A tokenizer of letters and small models for it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from evo_core.data.tokenize.tokenizers import Tokenizer
from evo_core.generate.batch import DecodingBatch, Row
from evo_core.generate.forward import Forward
from evo_core.generate.sampling import Sampling
from evo_core.model import Decoder, build_model
from evo_core.parallel.mesh import Mesh
from tests.model.configs import randomise, tiny

LETTERS = "abcdefghijklmnopqrstuvwxyz ."


class LetterTokenizer(Tokenizer):
    """Ids 0 unknown, 1 begin, 2 end, then a letter each."""

    def __init__(self) -> None:
        self.path, self.files, self.digest = Path("letters"), (), "letters"
        self.vocab_size = 3 + len(LETTERS)
        self.bos_id, self.eos_id, self.pad_id = 1, 2, None

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(LETTERS[i - 3] for i in self._known(ids) if i >= 3)

    def encode_with_offsets(self, text: str) -> list[tuple[int, int, int]]:
        return [(token, at, at + 1) for at, token in enumerate(self._encode([text])[0])]

    def token_id(self, piece: str) -> int | None:
        return 3 + LETTERS.index(piece) if piece in LETTERS else None

    def piece(self, token: int) -> str:
        return LETTERS[token - 3] if 3 <= token < self.vocab_size else ""

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [[3 + LETTERS.index(letter) if letter in LETTERS else 0 for letter in text] for text in texts]


def decoder(dtype: str = "float64", seed: int = 0, **settings: Any) -> Decoder:
    """A small model with weights that make it choose varied tokens."""
    model = build_model(tiny(dtype=dtype, **settings))
    randomise(model, seed, scale=0.5)
    return model.eval()


@torch.no_grad()
def logits_without_cache(model: Decoder, ids: list[int]) -> torch.Tensor:
    """Logits [V] after the last token, everything read anew."""
    count = len(ids)
    cu_seqlens = torch.tensor([0, count], dtype=torch.int32)
    return model(torch.tensor(ids), torch.arange(count), cu_seqlens).logits[-1]


def greedy_without_cache(model: Decoder, ids: list[int], new: int) -> list[int]:
    """The most likely continuation, every step reading everything anew."""
    result = list(ids)
    for _ in range(new):
        result.append(int(logits_without_cache(model, result).argmax()))
    return result[len(ids) :]


def rows_that_come_and_go(model: Decoder, mesh: Mesh | None = None, *, short: bool) -> list[Row]:
    """Greedy rows, with their log-probabilities, that join and leave a batch of a model between its steps.

    Args:
        short: whether single tokens take the short path, which the model allows, or go through its modules.
    """
    forward = Forward(model, mesh)
    assert forward._short
    forward._short = short
    rng, every = random.Random(0), []
    batch = DecodingBatch(forward, [], 64)
    for _ in range(4):
        prompts = [[rng.randrange(64) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(1, 3))]
        greedy = Sampling(do_sample=False)
        rows = [Row(prompt, len(prompt) + rng.randint(1, 9), greedy, log_probs=[]) for prompt in prompts]
        batch.add(rows)
        every += rows
        for _ in range(3):
            if batch.rows:
                batch.step()
        batch.remove([row for row in batch.rows if rng.random() < 0.3])
    while batch.rows:
        batch.step()
    return every

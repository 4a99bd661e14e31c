"""Beam search against every continuation there is, and against Hugging Face's."""

from __future__ import annotations

import itertools

import pytest
import torch

from evo_core.errors import ConfigError
from evo_core.generate import generate
from evo_core.model import Decoder
from tests.generate.models import LetterTokenizer, decoder, logits_without_cache
from tests.model.llama import to_llama

PROMPTS = [[1, 7, 30, 4], [5], [9, 9, 9, 9, 9, 9, 9, 12], [60, 2]]


def llama_like(seed: int = 0, **settings: object) -> Decoder:
    return decoder(model_type="LLAMA2", seed=seed, qk_interleaved=False, no_bias=True, **settings)


@torch.no_grad()
def best_of_all(model: Decoder, prompt: list[int], new: int, ending: set[int], penalty: float) -> list[int]:
    """The continuation with the best score, every one of them tried."""
    vocab = model.cfg.vocab_size
    texts = []
    for length in range(1, new + 1):
        for middle in itertools.product([t for t in range(vocab) if t not in ending], repeat=length - 1):
            last = range(vocab) if length == new else sorted(ending)
            texts += [[*middle, token] for token in last]
    whole = [prompt + text for text in texts]
    ends = torch.tensor([0, *map(len, whole)]).cumsum(0)
    positions = torch.cat([torch.arange(len(text)) for text in whole])
    ids = torch.tensor([token for text in whole for token in text])
    logp = model(ids, positions, ends.to(torch.int32)).logits.log_softmax(-1)
    scores = []
    for text, end in zip(texts, ends[1:].tolist(), strict=True):
        places = torch.arange(end - len(text) - 1, end - 1)
        scores.append(logp[places, torch.tensor(text)].sum().item() / len(text) ** penalty)
    return texts[max(range(len(texts)), key=scores.__getitem__)]


FEW = [(-1.0, {2}), (0.6, {2, 4}), (2.5, set())]
MORE = [
    (penalty, ending)
    for penalty in (-1.0, 0.0, 0.6, 1.0, 2.5)
    for ending in ({2}, {2, 4}, set())
    if (penalty, ending) not in FEW
]


@pytest.mark.parametrize(("penalty", "ending"), [*FEW, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE)])
def test_with_beams_enough_it_finds_the_best_of_all(penalty: float, ending: set[int]) -> None:
    options = {"max_new_tokens": 4, "do_sample": False, "length_penalty": penalty, "eos_id": sorted(ending)}
    lengths = set()
    for seed in range(3):
        model = decoder(seed=seed, vocab_size=5)
        prompts = [[1, 3], [4]]
        results = generate(model, None, prompts, num_beams=125, batch_size=2, **options)
        for prompt, result in zip(prompts, results, strict=True):
            assert result.ids == best_of_all(model, prompt, 4, ending, penalty)
            assert result.finished == (result.ids[-1] in ending)
            lengths.add(len(result.ids))
    if ending and penalty < 0:
        assert min(lengths) < 4


EOS = [[11], [11, 40, 3], None]
EVERY = [(beams, penalty, number) for beams in (2, 3, 5) for penalty in (0.0, 1.0, 2.0) for number in range(3)]


def is_drawn(beams: int, penalty: float, number: int) -> bool:
    """Nine of the 27: every two settings of theirs meet once."""
    return (beams + penalty + number) % 3 == 0


@pytest.mark.parametrize(
    ("beams", "penalty", "eos"),
    [pytest.param(*each[:2], EOS[each[2]], marks=[] if is_drawn(*each) else pytest.mark.slow) for each in EVERY],
)
def test_it_equals_hugging_faces(beams: int, penalty: float, eos: list[int] | None) -> None:
    model = llama_like(num_kv_attention_heads=2)
    llama = to_llama(model).double()
    options = {"max_new_tokens": 15, "do_sample": False, "num_beams": beams, "length_penalty": penalty}
    results = generate(model, None, PROMPTS, eos_id=eos, batch_size=3, **options)
    for prompt, result in zip(PROMPTS, results, strict=True):
        ids = torch.tensor([prompt])
        theirs = llama.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            eos_token_id=eos,
            pad_token_id=0,
            early_stopping="never",
            **options,
        )[0, len(prompt) :].tolist()
        assert result.ids == theirs[: len(result.ids)]
        assert not any(theirs[len(result.ids) :])


def test_one_beam_is_greedy_and_a_batch_changes_nothing() -> None:
    model = decoder()
    options = {"max_new_tokens": 12, "do_sample": False, "eos_id": [2, 17, 30], "repetition_penalty": 1.4}
    assert generate(model, None, PROMPTS, num_beams=1, **options) == generate(model, None, PROMPTS, **options)
    alone = generate(model, None, PROMPTS, num_beams=4, **options)
    assert generate(model, None, PROMPTS, num_beams=4, batch_size=4, **options) == alone
    assert alone != generate(model, None, PROMPTS, **options)


def test_drawn_beams_repeat_with_their_seed_and_keep_to_their_settings() -> None:
    model = decoder()
    options = {"max_new_tokens": 10, "num_beams": 3, "eos_id": 2}
    runs = [generate(model, LetterTokenizer(), ["a cat", "the"], seed=s, batch_size=2, **options) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    greedy = generate(model, None, PROMPTS, max_new_tokens=10, do_sample=False)
    # Where only the most likely token may be drawn, there is one continuation.
    assert [r.ids for r in generate(model, None, PROMPTS, max_new_tokens=10, num_beams=3, top_k=1)] == [
        result.ids for result in greedy
    ]


def test_candidates_are_drawn_by_their_probability() -> None:
    model, draws, temperature = decoder(vocab_size=6), 3000, 20.0
    results = generate(
        model, None, [[3, 4]] * draws, max_new_tokens=1, num_beams=2, top_k=0, temperature=temperature, batch_size=1000
    )
    frequency = torch.bincount(torch.tensor([result.ids[0] for result in results]), minlength=6) / draws
    p = (logits_without_cache(model, [3, 4]) / temperature).softmax(-1).tolist()
    expected = [0.0] * 6  # of four candidates, drawn one after the other without replacement, the likeliest wins
    for drawn in itertools.permutations(range(6), 4):
        chance, left = 1.0, 1.0
        for token in drawn:
            chance, left = chance * p[token] / left, left - p[token]
        expected[max(drawn, key=p.__getitem__)] += chance
    for seen, chance in zip(frequency.tolist(), expected, strict=True):
        assert abs(seen - chance) <= 4.5 * (chance * (1 - chance) / draws) ** 0.5 + 1e-9
    assert sum(chance > 0.01 for chance in expected) > 1


def test_progress_and_mistakes() -> None:
    calls: list[tuple[int, int]] = []
    results = generate(
        decoder(),
        None,
        [[3], [4] * 50, [5], [6]],
        max_length=20,
        num_beams=3,
        do_sample=False,
        eos_id=[2, 9, 30],
        batch_size=2,
        progress=lambda prompts, tokens: calls.append((prompts, tokens)),
    )
    assert calls == sorted(calls)
    assert calls[-1] == (4, sum(len(result.ids) for result in results))
    assert results[1].ids == []
    with pytest.raises(ConfigError, match="num_beams: 0 must be 1 or more"):
        generate(decoder(), None, [[3]], num_beams=0)

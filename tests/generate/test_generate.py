"""Continuing prompts: limits, ends, seeds, batches, text."""

from __future__ import annotations

import pytest
import torch

from evo_core.errors import ConfigError, DataError
from evo_core.generate import generate
from tests.generate.models import LetterTokenizer, decoder, logits_without_cache

LETTERS = LetterTokenizer()
TEXTS = ["the cat", "a", "", "in the beginning was "]


def test_text_in_text_out() -> None:
    model = decoder()
    results = generate(model, LETTERS, TEXTS, max_new_tokens=10, seed=3, batch_size=4)
    for text, result in zip(TEXTS, results, strict=True):
        assert result.prompt == text
        assert result.prompt_ids == [1, *LETTERS.encode(text)]
        assert result.text == LETTERS.decode(result.ids)
        assert 1 <= len(result.ids) <= 10
        # The model has 61 ids, the tokenizer 31: the others are never chosen.
        assert max(result.ids) < LETTERS.vocab_size


def test_a_continuation_keeps_the_space_it_begins_with() -> None:
    class Spaced(LetterTokenizer):
        def decode(self, ids):
            return super().decode(ids).lstrip()

    model = decoder()
    for seed in range(200):
        result = generate(model, Spaced(), ["the"], max_new_tokens=3, seed=seed, temperature=3.0)[0]
        if result.ids[0] == 3 + 26:
            assert result.text.startswith(" ")
            return
    pytest.fail("no continuation began with a space")


def test_max_length_counts_the_prompt_and_max_new_tokens_replaces_it() -> None:
    model = decoder()
    prompts = [[5] * 3, [5] * 10, [5] * 12]
    results = generate(model, None, prompts, max_length=10, batch_size=3)
    assert [len(result.ids) for result in results] == [7, 0, 0]
    assert [len(result.prompt_ids) for result in results] == [3, 10, 10]
    results = generate(model, None, prompts, max_length=10, max_new_tokens=4)
    assert [(len(r.prompt_ids), len(r.ids)) for r in results] == [(3, 4), (10, 4), (12, 4)]
    assert len(generate(model, None, [[5]])[0].ids) == 99


@pytest.mark.parametrize("do_sample", [False, True])
def test_finished_rows_stop_and_the_others_go_on(do_sample: bool) -> None:
    model = decoder()
    prompts = [[i, i + 1] for i in range(3, 23)]
    ends = [7, 33, 50, 12]
    options = {"max_new_tokens": 30, "do_sample": do_sample, "seed": 5, "temperature": 2.0}
    free = generate(model, None, prompts, **options)
    results = generate(model, None, prompts, eos_id=ends, batch_size=20, **options)
    finished = 0
    for result, without_end in zip(results, free, strict=True):
        place = next((i for i, token in enumerate(without_end.ids) if token in ends), None)
        assert result.finished == (place is not None)
        assert result.ids == (without_end.ids if place is None else without_end.ids[: place + 1])
        finished += result.finished
    assert 0 < finished < 20


def test_one_end_and_several_ends_agree() -> None:
    model = decoder()
    options = {"max_new_tokens": 30, "do_sample": False}
    first = generate(model, None, [[3]], **options)[0].ids
    end = first[4]
    one, several = (generate(model, None, [[3]], eos_id=e, **options)[0] for e in (end, [end]))
    assert one == several
    assert one.ids == first[: first.index(end) + 1]
    assert one.finished


@pytest.mark.parametrize("settings", [
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.5},
    {"do_sample": True},
    {"do_sample": True, "top_p": 0.8, "temperature": 1.5, "repetition_penalty": 1.2, "length_penalty": 0.7},
])  # fmt: skip
def test_a_result_depends_on_seed_and_number_not_on_its_batch(settings: dict) -> None:
    model = decoder()
    prompts = [[3, 4, 5], [6], [7, 8], [9, 10, 11, 12], [13]]
    options = {"max_new_tokens": 9, "eos_id": [2, 17], "seed": 11, **settings}
    alone = generate(model, None, prompts, **options)
    for batch_size in (2, 5):
        assert generate(model, None, prompts, batch_size=batch_size, **options) == alone
    numbers = [4, 0, 2]
    some = generate(model, None, [prompts[i] for i in numbers], indices=numbers, batch_size=3, **options)
    assert some == [alone[i] for i in numbers]


def test_seeds_differ_and_repeat() -> None:
    model = decoder()
    runs = [[r.ids for r in generate(model, None, [[3], [3]], max_new_tokens=20, seed=s)] for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] != runs[0][1]


def test_the_first_token_is_drawn_like_every_other() -> None:
    model = decoder()
    draws = 4000
    results = generate(model, None, [[3, 4]] * draws, max_new_tokens=1, top_k=3, batch_size=1000)
    chosen = torch.tensor([result.ids[0] for result in results])
    scores = logits_without_cache(model, [3, 4])
    best, ids = scores.topk(3)
    for probability, token in zip(best.softmax(-1), ids, strict=True):
        deviation = (probability * (1 - probability) / draws).sqrt()
        assert abs((chosen == token).double().mean() - probability) < 4.5 * deviation


def test_greedy_with_repetition_penalty_equals_its_definition() -> None:
    model = decoder()
    ids = [3, 4, 5]
    for _ in range(15):
        scores = logits_without_cache(model, ids)
        for token in set(ids):
            scores[token] = scores[token] * 1.8 if scores[token] < 0 else scores[token] / 1.8
        ids.append(int(scores.argmax()))
    result = generate(model, None, [[3, 4, 5]], max_new_tokens=15, do_sample=False, repetition_penalty=1.8)[0]
    assert result.ids == ids[3:]


def test_progress_counts_prompts_and_tokens() -> None:
    calls: list[tuple[int, int]] = []
    results = generate(
        decoder(),
        None,
        [[3], [4] * 50, [5], [6]],
        max_length=20,
        eos_id=[2, 9, 30],
        batch_size=2,
        progress=lambda prompts, tokens: calls.append((prompts, tokens)),
    )
    assert calls == sorted(calls)
    assert calls[-1] == (4, sum(len(result.ids) for result in results))


def test_no_prompts_no_results() -> None:
    assert generate(decoder(), LETTERS, []) == []


def test_mistakes_are_told() -> None:
    model = decoder()
    with pytest.raises(DataError, match="prompt 2 is text, and there is no tokenizer"):
        generate(model, None, [[3], "text"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        generate(model, None, [[]])
    with pytest.raises(DataError, match="prompt 2 holds token id 61, outside the model's vocabulary of 61"):
        generate(model, None, [[60], [3, 61]])
    with pytest.raises(ConfigError, match="top_p"):
        generate(model, None, [[3]], top_p=2.0)
    with pytest.raises(ConfigError, match="only the shipped families"):
        generate(torch.nn.Linear(2, 2), None, [[3]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_dtypes_generate(dtype: str) -> None:
    results = generate(decoder(dtype=dtype, num_kv_attention_heads=2), LETTERS, TEXTS, max_length=30, batch_size=3)
    assert len(results) == 4

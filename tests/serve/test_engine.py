"""One continuation's trouble is its own: the engine with texts of which some go wrong, each in another way."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from evo_core.errors import CheckpointError
from evo_core.generate import generate, stream
from evo_core.generate.batch import Row, random_numbers
from evo_core.generate.sampling import Sampling
from evo_core.model import Decoder
from evo_core.serve.engine import Choice, Engine, Event
from tests.generate.models import LetterTokenizer, decoder

GREEDY = Sampling(do_sample=False, top_k=0)
BROKEN, UNREADABLE = 13, 14
"""Ids that spoil a text which begins with them."""


class Forgetful(LetterTokenizer):
    """Cannot decode more than two ids."""

    def decode(self, ids: Iterable[int]) -> str:
        if len(list(ids)) > 2:
            raise RuntimeError("too many letters")
        return super().decode(ids)


@pytest.fixture(scope="module")
def model() -> Decoder:
    """Prompts that go on with `BROKEN` are no numbers to it, and those with `UNREADABLE` fail the pass they are in."""
    model = decoder()

    def spoil(module: Any, args: Any, embedded: torch.Tensor) -> None:
        ids = args[0]
        begun = torch.cat([ids.new_zeros(1), ids[:-1]]) == 1
        if (begun & (ids == UNREADABLE)).any():
            raise RuntimeError("out of memory\nand much more")
        embedded[begun & (ids == BROKEN)] = torch.nan

    model.embedding.register_forward_hook(spoil)
    return model


@pytest.fixture
def engine(model: Decoder) -> Iterator[Engine]:
    engine = Engine(model, LetterTokenizer(), {2}, max_batch=8)
    engine.start()
    yield engine
    engine.close()


def choice(
    news: queue.Queue[Event],
    number: int,
    prompt: list[int],
    sampling: Sampling = GREEDY,
    *,
    new: int = 12,
    tokenizer: LetterTokenizer | None = None,
) -> Choice:
    draws = random_numbers(7, number) if sampling.do_sample else None
    row = Row(prompt, len(prompt) + new, sampling, draws)
    return Choice(number, row, tokenizer or LetterTokenizer(), [], False, news.put)


def ends(news: queue.Queue[Event], count: int) -> dict[int, tuple[str, Event]]:
    """Text and last event of each choice, when so many have ended."""
    texts: dict[int, str] = {}
    last: dict[int, tuple[str, Event]] = {}
    while len(last) < count:
        event = news.get(timeout=20)
        texts[event.choice] = texts.get(event.choice, "") + event.text
        if event.finish_reason is not None:
            last[event.choice] = (texts[event.choice], event)
    return last


def quiet(model: Decoder, prompt: list[int], sampling: Sampling = GREEDY) -> str:
    (result,) = generate(model, LetterTokenizer(), [prompt], max_new_tokens=12, eos_id=2, **vars(sampling))
    return result.text


@pytest.mark.parametrize("together", [True, False])
def test_what_goes_wrong_with_one_touches_no_other(model: Decoder, engine: Engine, together: bool) -> None:
    news: queue.Queue[Event] = queue.Queue()
    good = [[1, 5, 9], [1, 20, 21, 22], [1, 8]]
    running = [choice(news, number, prompt) for number, prompt in enumerate(good)]
    wrong = {
        "not finite": choice(news, 10, [1, BROKEN]),
        "RuntimeError: out of memory": choice(news, 11, [1, UNREADABLE, 5]),
        "too many letters": choice(news, 12, [1, 7], tokenizer=Forgetful()),
    }
    if together:
        mixed = [one for pair in zip(running, wrong.values(), strict=True) for one in pair]
        engine.submit(mixed)
    else:
        for one in (*running, *wrong.values()):
            engine.submit([one])
    ended = ends(news, 6)
    for number, prompt in enumerate(good):
        text, event = ended[number]
        assert event.error is None
        assert text == quiet(model, prompt)
    for words, one in wrong.items():
        event = ended[one.number][1]
        assert (event.finish_reason, event.status) == ("error", 500)
        assert words in str(event.error)
        assert "much more" not in str(event.error)
    assert engine.alive
    assert engine.load() == (0, 0)


@pytest.mark.parametrize(
    "odd",
    [
        {"temperature": 5e-324},
        {"temperature": 1e-39},
        {"temperature": 1e39},
        {"temperature": 1.7e308},
        {"top_p": 1e-47},
        {"top_p": 5e-324},
        {"repetition_penalty": 1e-41},
        {"repetition_penalty": 5e-324},
        {"repetition_penalty": 1e41},
        {"repetition_penalty": 1.7e308},
        {"length_penalty": 1e3},
        {"length_penalty": -1e3},
    ],
)
def test_settings_at_the_ends_of_numbers_give_what_they_tend_to(engine: Engine, odd: dict[str, float]) -> None:
    plain = decoder(dtype="float32")
    settings = {"do_sample": True, "top_k": 0, **odd}
    prompts = [[1, 5, 9], [1, 20, 21, 22]]
    alone = generate(plain, LetterTokenizer(), prompts[:1], max_new_tokens=12, do_sample=False, top_k=0)
    results = generate(plain, LetterTokenizer(), prompts, max_new_tokens=12, batch_size=2, **settings)
    assert [result.error for result in results] == [None, None]
    beams = generate(plain, LetterTokenizer(), prompts, max_new_tokens=12, batch_size=2, num_beams=3, **settings)
    assert all(result.error is None and result.ids for result in beams)
    if odd.get("temperature", 1) < 1 or odd.get("top_p", 1) < 1:  # so little is left that it is the most likely token
        assert results[0].ids == alone[0].ids
    news: queue.Queue[Event] = queue.Queue()
    engine.submit([choice(news, 0, [1, 5, 9]), choice(news, 1, [1, 20], Sampling(**settings))])
    ended = ends(news, 2)
    assert [event.error for _, event in ended.values()] == [None, None]


def test_a_prompt_that_the_model_cannot_score_ends_alone_in_every_generator(model: Decoder) -> None:
    prompts = [[1, 5, 9], [1, BROKEN, 4], [1, 8]]
    for settings in ({}, {"do_sample": False}, {"num_beams": 3}, {"num_beams": 3, "do_sample": False}):
        for batch_size in (1, 3):
            options: dict[str, Any] = {"max_new_tokens": 6, "batch_size": batch_size, **settings}
            results = generate(model, LetterTokenizer(), prompts, **options)
            assert "after 3 tokens are not finite" in str(results[1].error)
            assert (results[1].ids, results[1].text) == ([], "")
            good = [results[0], results[2]]
            assert all(result.error is None and result.ids for result in good)
    with pytest.raises(CheckpointError, match="not finite"):
        list(stream(model, LetterTokenizer(), prompts[1], max_new_tokens=3))


def test_a_text_that_cannot_be_decoded_costs_the_others_nothing(model: Decoder) -> None:
    class NoSeven(LetterTokenizer):
        def decode(self, ids: Iterable[int]) -> str:
            ids = list(ids)
            if ids[:2] == [1, 7]:
                raise RuntimeError("no sevens")
            return super().decode(ids)

    results = generate(model, NoSeven(), [[1, 5, 9], [1, 7]], max_new_tokens=6, do_sample=False)
    assert "no sevens" in str(results[1].error)
    assert results[1].ids
    assert results[0].text == LetterTokenizer().decode(results[0].ids)


def test_whoever_stops_listening_costs_the_others_nothing(model: Decoder, engine: Engine) -> None:
    def deaf(event: Event) -> None:
        raise RuntimeError("nobody listens")

    news: queue.Queue[Event] = queue.Queue()
    silent = choice(news, 9, [1, 6])
    silent.tell = deaf
    engine.submit([choice(news, 0, [1, 5, 9]), silent])
    ((text, event),) = ends(news, 1).values()
    assert event.error is None
    assert text == quiet(model, [1, 5, 9])
    assert engine.alive


def test_a_failed_step_ends_its_texts_and_the_next_are_served() -> None:
    plain = decoder()
    news: queue.Queue[Event] = queue.Queue()
    broken = True

    def refuse(module: Any, args: Any) -> None:
        if broken and len(args[0]) == 1:
            raise RuntimeError("no memory")

    engine = Engine(plain, LetterTokenizer(), {2})
    engine._forward._short = False  # steps through the modules too, where a hook can stand in for a full device
    plain.embedding.register_forward_pre_hook(refuse)
    engine.start()
    try:
        engine.submit([choice(news, 0, [1, 5, 9])])
        assert "no memory" in str(ends(news, 1)[0][1].error)
        broken = False
        engine.submit([choice(news, 1, [1, 5, 9])])
        text, event = ends(news, 1)[1]
        assert (event.error, text) == (None, quiet(plain, [1, 5, 9]))
    finally:
        engine.close()

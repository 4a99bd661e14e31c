"""Dynamic NTK: the formula, the cache, and that a model reads further than it was trained on."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from evo_core.config import TrainConfig
from evo_core.data.sample.sample_text import _english
from evo_core.evaluate.harness.until import continue_until
from evo_core.generate import generate
from evo_core.model import Decoder, build_model, init_weights
from evo_core.model.ops.dynamic_ntk import dynamic_ntk_base
from evo_core.serve.service import Service
from tests.generate.models import LetterTokenizer, decoder, greedy_without_cache
from tests.model.configs import randomise, relative_error, tiny
from tests.model.llama import to_llama

STRETCHED: dict[str, Any] = {"use_dynamic_ntk_rope": True, "max_position_embeddings": 8}
PROMPTS = [[1, 7, 30, 4], [5], [9, 9, 3, 9, 9, 8, 9, 12, 40, 41, 42], [60, 2]]


def test_the_base_follows_the_formula() -> None:
    assert dynamic_ntk_base(10000.0, 64, 2048, 2048) == 10000.0
    assert dynamic_ntk_base(10000.0, 64, 8192, 2048) == pytest.approx(10000 * 4 ** (64 / 62))
    assert dynamic_ntk_base(10000.0, 64, 8192, 2048, scaling=2.0) == pytest.approx(10000 * 7 ** (64 / 62))
    # Over the longer text the slowest pair turns as far as it did over the trained length.
    base, d = dynamic_ntk_base(10000.0, 64, 8192, 2048), 64
    assert 8192 * base ** -((d - 2) / d) == pytest.approx(2048 * 10000.0 ** -((d - 2) / d))


def test_logits_equal_hugging_faces_dynamic_rope() -> None:
    model = decoder(model_type="LLAMA2", qk_interleaved=False, no_bias=True, **STRETCHED)
    llama = to_llama(model).double()
    parameters = {"rope_type": "dynamic", "rope_theta": model.cfg.rope_base, "factor": 1.0}
    llama.config.rope_parameters, llama.config.max_position_embeddings = parameters, 8
    rebuilt = type(llama)(llama.config).double()
    rebuilt.load_state_dict(llama.state_dict())
    generator = torch.Generator().manual_seed(3)
    for length in (5, 8, 9, 40):
        ids = torch.randint(61, (length,), generator=generator)
        with torch.no_grad():
            ours = model(ids, torch.arange(length), torch.tensor([0, length], dtype=torch.int32)).logits
            theirs = rebuilt(ids[None]).logits[0]
        assert relative_error(ours, theirs) < 1e-5  # their tables are float32


def test_each_document_is_stretched_by_its_own_length() -> None:
    model = decoder(**STRETCHED)
    lengths = [5, 30, 8, 12]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    ids = torch.randint(61, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(n) for n in lengths])
    with torch.no_grad():
        packed = model(ids, positions, ends.to(torch.int32)).logits
        for start, end in itertools.pairwise(ends.tolist()):
            count = end - start
            alone = model(ids[start:end], torch.arange(count), torch.tensor([0, count], dtype=torch.int32)).logits
            assert torch.allclose(packed[start:end], alone)
        plain = decoder()(ids, positions, ends.to(torch.int32)).logits
        changed = [not torch.allclose(packed[s:e], plain[s:e]) for s, e in itertools.pairwise(ends)]
        assert changed == [False, True, False, True]
        assert torch.equal(model.train()(ids, positions, ends.to(torch.int32)).logits, plain)


def stretched_by_hand(model: Decoder, prompt: list[int], new: int) -> list[int]:
    """Greedy with keys of all earlier steps kept unrotated: what each token added to them does not change later."""
    layers = len(model.blocks)
    keys: list[list[torch.Tensor]] = [[] for _ in range(layers)]
    values: list[list[torch.Tensor]] = [[] for _ in range(layers)]
    ids, fresh = list(prompt), list(prompt)
    cfg = model.cfg
    for _ in range(new):
        length = len(ids)
        base = dynamic_ntk_base(cfg.rope_base, cfg.head_dim, length, cfg.max_position_embeddings)
        turn = base ** (-torch.arange(0, cfg.head_dim, 2, dtype=torch.float64) / cfg.head_dim)

        def turned(x: torch.Tensor, first: int, turn: torch.Tensor = turn) -> torch.Tensor:
            """x [T, heads, d] whose first token has position `first`, halves rotated."""
            angle = (torch.arange(first, first + len(x))[:, None] * turn)[:, None]
            a, b = x.chunk(2, -1)
            return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

        x = model.embedding(torch.tensor(fresh))
        first = length - len(fresh)
        for layer, block in enumerate(model.blocks.values()):
            q, k, v = block.attention.project(block.attention_norm(x))
            q = q.reshape(len(fresh), -1, cfg.head_dim)
            keys[layer].append(k)
            values[layer].append(v)
            every_k, every_v = turned(torch.cat(keys[layer]), 0), torch.cat(values[layer])
            q = turned(q, first)
            scores = torch.einsum("qhd,khd->hqk", q, every_k) / math.sqrt(cfg.head_dim)
            later = torch.arange(length)[None] > torch.arange(first, length)[:, None]
            weight = scores.masked_fill(later, float("-inf")).softmax(-1)
            x = x + block.attention.out(torch.einsum("hqk,khd->qhd", weight, every_v).flatten(1))
            x = x + block.mlp(block.mlp_norm(x))
        fresh = [int(model.head.logits(model.norm(x))[-1].argmax())]
        ids += fresh
    return ids[len(prompt) :]


@torch.no_grad()
@pytest.mark.parametrize("family", [{"model_type": "INTERNLM"}, {"model_type": "LLAMA2", "qk_interleaved": False}])
def test_cached_keys_turn_with_the_present_base(family: dict[str, Any]) -> None:
    model = decoder(**STRETCHED, **family)
    expected = [stretched_by_hand(model, prompt, 25) for prompt in PROMPTS]
    for batch_size in (1, 3, 4):
        results = generate(model, None, PROMPTS, max_new_tokens=25, do_sample=False, batch_size=batch_size)
        assert [result.ids for result in results] == expected
    plain = generate(model, None, PROMPTS, max_new_tokens=25, do_sample=False, dynamic_ntk=False)
    assert [r.ids for r in plain] == [greedy_without_cache(decoder(**family), prompt, 25) for prompt in PROMPTS]
    assert [r.ids for r in plain] != expected
    beams = generate(model, None, PROMPTS, max_new_tokens=25, do_sample=False, num_beams=2, batch_size=4)
    assert beams == generate(model, None, PROMPTS, max_new_tokens=25, do_sample=False, num_beams=2)


def test_tasks_that_generate_read_with_the_same_base() -> None:
    model, tokenizer = decoder(**STRETCHED), LetterTokenizer()
    contexts = [[9, 4, 7], [1, *range(5, 25)]]
    texts = continue_until(model, tokenizer, contexts, [{"max_gen_toks": 15}] * 2, numbers=range(2), max_length=64)
    results = generate(model, tokenizer, contexts, max_new_tokens=15, do_sample=False)
    plain = generate(model, tokenizer, contexts, max_new_tokens=15, do_sample=False, dynamic_ntk=False)
    assert texts == [result.text for result in results] != [result.text for result in plain]


def test_switched_on_and_short_it_changes_nothing() -> None:
    model = decoder(use_dynamic_ntk_rope=True, max_position_embeddings=64)
    results = generate(model, None, PROMPTS, max_new_tokens=20, do_sample=False, batch_size=2)
    assert [r.ids for r in results] == [greedy_without_cache(decoder(), prompt, 20) for prompt in PROMPTS]


def _perplexity(model: Decoder, texts: torch.Tensor, *, stretched: bool) -> float:
    """Of the last quarter of each text [n, length + 1], which lies furthest beyond the trained length."""
    model.cfg = model.cfg.model_copy(update={"use_dynamic_ntk_rope": stretched})
    count, length = texts.shape[0], texts.shape[1] - 1
    ends = torch.arange(count + 1, dtype=torch.int32) * length
    positions = torch.arange(length).repeat(count)
    with torch.no_grad():
        out = model.eval()(texts[:, :-1].flatten(), positions, ends, labels=texts[:, 1:].flatten())
    return math.exp(out.nll.view(count, length)[:, -length // 4 :].mean())


def trained_model(trained: int, steps: int, **settings: Any) -> tuple[Decoder, torch.Tensor]:
    """A small model trained on English letters at so many tokens, and the bytes it did not see."""
    text = "\n".join(document.text for document, _ in zip(_english(), range(2000), strict=False))
    letters = torch.tensor(list(text.encode("ascii", "replace")), dtype=torch.int64)
    cut = len(letters) * 9 // 10
    cfg = tiny(vocab_size=128, hidden_size=64, multiple_of=32, max_position_embeddings=trained, **settings)
    model = build_model(cfg)
    init_weights(model, cfg, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    generator, count = torch.Generator().manual_seed(0), 2048 // trained
    for _ in range(steps):
        starts = torch.randint(cut - trained - 1, (count,), generator=generator)
        batch = torch.stack([letters[s : s + trained + 1] for s in starts.tolist()])
        ends = torch.arange(count + 1, dtype=torch.int32) * trained
        positions = torch.arange(trained).repeat(count)
        model(batch[:, :-1].flatten(), positions, ends, labels=batch[:, 1:].flatten()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model, letters[cut:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_perplexity_at_four_times_the_trained_length_is_lower_with_it() -> None:
    trained = 64
    model, unseen = trained_model(trained, steps=400, num_layers=2)
    for times in (1, 2, 4):
        length = times * trained
        texts = unseen[: len(unseen) // (length + 1) * (length + 1)].view(-1, length + 1)[:200]
        plain, stretched = (_perplexity(model, texts, stretched=on) for on in (False, True))
        print(f"{length} tokens: perplexity {plain:.3f} without, {stretched:.3f} with Dynamic NTK")
        if times == 1:
            assert plain == stretched
        else:
            assert stretched < plain


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sixteen_thousand_tokens() -> None:
    cfg = {"max_position_embeddings": 4096, "use_dynamic_ntk_rope": True, "num_kv_attention_heads": 2}
    model = decoder(dtype="float32", **cfg)
    prompt = torch.randint(61, (16_000,), generator=torch.Generator().manual_seed(0)).tolist()
    result = generate(model, None, [prompt], max_new_tokens=384, do_sample=False)[0]
    assert len(result.ids) == 384
    plain = generate(model, None, [prompt], max_new_tokens=8, do_sample=False, dynamic_ntk=False)[0]
    assert len(plain.ids) == 8


def test_the_trained_length_is_that_of_the_data_where_none_is_stated() -> None:
    shape = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 61, "dtype": "torch.float64"}
    cfg = TrainConfig.model_validate({"model": shape, "data": {"seq_len": 16}})
    model = build_model(cfg.model)
    randomise(model, 3, scale=0.5)
    model.eval()
    card = Service(model, LetterTokenizer(), "small").card()
    assert (card["trained_length"], card["max_length"]) == (16, 64)

    def written(prompt: list[int], new: int, stretched: bool) -> list[int]:
        options = {"max_new_tokens": new, "do_sample": False, "dynamic_ntk": stretched}
        return generate(model, None, [prompt], **options)[0].ids

    within, beyond = [5, 9, 11, 7], [3 + i % 25 for i in range(40)]
    assert written(within, 12, False) == written(within, 12, True)
    assert written(beyond, 24, False) != written(beyond, 24, True)

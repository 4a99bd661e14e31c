"""Each setting of the choice of tokens, against its definition."""

from __future__ import annotations

import pytest
import torch

from evo_core.errors import ConfigError
from evo_core.generate.sampling import RowSettings, Sampling, choose, distribution, penalise

SCORES = torch.tensor([[2.0, 0.0, -1.0, 3.0, 1.0, -4.0]], dtype=torch.float64)
ALL = Sampling(top_k=0)
NO_ID = torch.tensor([], dtype=torch.int64)


def settings(*rows: Sampling) -> RowSettings:
    return RowSettings(rows, 6, "cpu")


def probabilities(sampling: Sampling, scores: torch.Tensor = SCORES) -> torch.Tensor:
    """What is drawn from, by id [V]."""
    probability, ids = distribution(scores, settings(sampling))
    return torch.zeros_like(scores).scatter_(1, ids, probability)[0]


def test_plain_sampling_is_softmax() -> None:
    assert torch.allclose(probabilities(ALL), SCORES.softmax(-1)[0])


def test_temperature_divides_scores() -> None:
    assert torch.allclose(probabilities(Sampling(top_k=0, temperature=0.5)), (SCORES / 0.5).softmax(-1)[0])


def test_top_k_keeps_the_k_most_likely() -> None:
    kept = probabilities(Sampling(top_k=2))
    assert kept.nonzero().flatten().tolist() == [0, 3]
    assert torch.allclose(kept[[0, 3]], SCORES[0, [0, 3]].softmax(-1))
    assert probabilities(Sampling(top_k=1))[3] == 1
    assert torch.allclose(probabilities(Sampling(top_k=100)), SCORES.softmax(-1)[0])


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    plain = SCORES.softmax(-1)[0]
    best = plain[3].item()  # 0.63; the best two have 0.86
    assert probabilities(Sampling(top_k=0, top_p=best - 1e-6)).nonzero().flatten().tolist() == [3]
    assert probabilities(Sampling(top_k=0, top_p=best + 1e-6)).nonzero().flatten().tolist() == [0, 3]
    kept = probabilities(Sampling(top_k=0, top_p=0.7))
    assert torch.allclose(kept[[0, 3]], plain[[0, 3]] / plain[[0, 3]].sum())
    assert probabilities(Sampling(top_k=0, top_p=1e-9))[3] == 1


def test_top_p_counts_within_the_top_k() -> None:
    within = SCORES[0, [3, 0]].softmax(-1)
    sampling = Sampling(top_k=2, top_p=within[0].item() - 1e-6)
    assert probabilities(sampling)[3] == 1


def test_repetition_penalty_lowers_seen_tokens_of_either_sign() -> None:
    seen = torch.tensor([[True, False, True, False, False, False]])
    out = penalise(SCORES, seen, None, NO_ID, settings(Sampling(repetition_penalty=2)))
    assert out.tolist() == [[1.0, 0.0, -2.0, 3.0, 1.0, -4.0]]


def test_length_penalty_divides_all_but_the_ending_tokens() -> None:
    two = SCORES.repeat(2, 1)
    half = Sampling(length_penalty=0.5)
    out = penalise(two, None, torch.tensor([4, 9]), torch.tensor([0, 5]), settings(half, half))
    assert torch.allclose(out[0], torch.tensor([2.0, 0.0, -0.5, 1.5, 0.5, -4.0]).double())
    assert torch.allclose(out[1], torch.tensor([2.0, 0.0, -1 / 3, 1.0, 1 / 3, -4.0]).double())


def test_no_penalty_changes_nothing() -> None:
    out = penalise(SCORES, None, None, torch.tensor([5]), settings(Sampling()))
    assert torch.equal(out, SCORES)


@pytest.mark.parametrize("sampling", [ALL, Sampling(top_k=3), Sampling(top_k=0, top_p=0.9), Sampling(temperature=2.0)])
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    draws = 200_000
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = choose(SCORES.expand(draws, -1), settings(*[sampling] * draws), uniform)
    frequency = torch.bincount(chosen, minlength=6) / draws
    expected = probabilities(sampling)
    assert (frequency[expected == 0] == 0).all()
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((frequency - expected).abs() <= 4.5 * deviation + 1e-12).all()


def test_the_ends_of_the_unit_interval_are_safe() -> None:
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    chosen = choose(SCORES.expand(2, -1).float(), settings(*[Sampling(top_k=0, top_p=0.9)] * 2), uniform)
    kept = probabilities(Sampling(top_k=0, top_p=0.9)).nonzero().flatten().tolist()
    assert chosen[0] == 3
    assert chosen[1] in kept


def test_rows_of_a_batch_keep_their_own_settings() -> None:
    rows = [
        Sampling(top_k=2, temperature=0.7),
        Sampling(top_k=0, top_p=0.7, repetition_penalty=1.7),
        Sampling(do_sample=False, top_k=0),
        Sampling(top_k=4, length_penalty=0.5),
    ]
    torch.manual_seed(0)
    scores = torch.randn(4, 6, dtype=torch.float64)
    seen, lengths, ending = torch.rand(4, 6) < 0.5, torch.tensor([3, 4, 5, 6]), torch.tensor([2])
    uniform = torch.rand(4, dtype=torch.float64)
    together = penalise(scores, seen, lengths, ending, settings(*rows))
    chosen = choose(together, settings(*rows), uniform)
    for i, row in enumerate(rows):
        own = settings(row)
        alone = penalise(scores[i : i + 1], seen[i : i + 1], lengths[i : i + 1], ending, own)
        assert torch.equal(together[i : i + 1], alone)
        assert chosen[i] == choose(alone, own, None if own.greedy else uniform[i : i + 1])
        if row.do_sample:
            probability, ids = distribution(together, settings(*rows))
            mine, my_ids = distribution(alone, own)
            width = mine.shape[1]
            assert torch.allclose(probability[i, :width], mine[0])
            assert not probability[i, width:].any()
            assert torch.equal(ids[i, :width], my_ids[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equal_scores_the_first_comes_first_whatever_rows_are_beside(dtype: torch.dtype) -> None:
    """Scores that came of bfloat16: hundreds of them are equal."""
    generator = torch.Generator().manual_seed(0)
    scores = (3 * torch.randn(5, 3000, generator=generator)).bfloat16().to(dtype)
    scores[4] = torch.where(torch.arange(3000) < 4, 9.0, -0.0)
    scores[4, 50:60] = 0.0
    uniform = torch.rand(5, generator=generator, dtype=torch.float64)
    greedy = Sampling(do_sample=False)

    def of(*rows: Sampling) -> RowSettings:
        return RowSettings(rows, 3000, "cpu")

    assert choose(scores, of(*[greedy] * 5), None).tolist() == scores.argmax(-1).tolist()
    for own in (greedy, Sampling(top_k=1), Sampling(top_k=7), Sampling(top_k=200, top_p=0.9), Sampling(top_k=0)):
        alone = choose(scores[:1], of(own), None if own is greedy else uniform[:1])
        for others in (1, 3, 40, 0):
            rows = of(own, *[Sampling(top_k=others)] * 4)
            assert choose(scores, rows, uniform)[0] == alone
    best, ids = distribution(scores, of(*[Sampling(top_k=64)] * 5))
    assert ids[4].tolist() == list(range(64)) and (best[4, 4:] == best[4, 4]).all()


def test_greedy_takes_the_most_likely() -> None:
    assert choose(SCORES, settings(Sampling(do_sample=False)), None).tolist() == [3]


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.0), ("temperature", -1.0), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5),
     ("repetition_penalty", 0.0)],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"generation\.{name}: .*must be"):
        Sampling(**{name: value})

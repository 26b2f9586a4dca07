import math

import pytest
import torch

from znatok.config import SampleOptions
from znatok.generate import sampling
from znatok.generate.sampling import chances, draw

LOGITS = [2.0, 1.0, 0.5, 0.0, -1.0, -torch.inf]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(logits, seeds=300, said=(), **options):
    """The set of tokens that so many seeds draw."""
    sample = SampleOptions(**({"temperature": 1.0, "top_p": 1.0} | options))
    return {draw(torch.tensor(logits), sample, said, generator(seed)) for seed in range(seeds)}


def frequencies(logits, count, **options):
    """How often each token is drawn, one generator for all draws."""
    sample = SampleOptions(**({"temperature": 1.0, "top_p": 1.0} | options))
    source, seen = generator(1), torch.zeros(len(logits), dtype=torch.float64)
    for _ in range(count):
        seen[draw(torch.tensor(logits), sample, (), source)] += 1
    return seen / count


def test_temperature_zero_takes_the_likeliest_and_draws_nothing():
    source = generator()
    before = source.get_state()
    assert draw(torch.tensor([0.0, 3.0, 2.9]), SampleOptions(temperature=0), (), source) == 1
    assert torch.equal(source.get_state(), before)


def test_chances_are_of_the_whole_distribution_and_begin_with_what_was_said():
    logits = torch.tensor([0.5, -torch.inf, 2.0, 1.0])
    told = chances(logits, 0, 2)
    assert [token for token, _logprob in told] == [0, 2, 3]
    assert [logprob for _token, logprob in told] == pytest.approx([float(logits.log_softmax(0)[i]) for i in (0, 2, 3)])
    assert chances(logits, 1, 0) == ((1, -math.inf),)


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-9, 1e-4])
def test_a_temperature_near_zero_is_no_overflow(temperature):
    assert drawn([300.0, 299.0, -300.0], 5, temperature=temperature) == {0}


def test_the_global_generator_is_neither_read_nor_moved():
    before = torch.random.get_rng_state()
    first = draw(torch.tensor(LOGITS), SampleOptions(temperature=5), (), generator(3))
    torch.rand(7)
    after = draw(torch.tensor(LOGITS), SampleOptions(temperature=5), (), generator(3))
    torch.random.set_rng_state(before)
    assert first == after


def test_all_finite_tokens_can_be_drawn_and_no_other():
    assert drawn(LOGITS, temperature=3) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("top_k", "tokens"), [(1, {0}), (2, {0, 1}), (3, {0, 1, 2}), (0, {0, 1, 2, 3, 4})])
def test_top_k_leaves_the_k_likeliest(top_k, tokens):
    assert drawn(LOGITS, top_k=top_k, temperature=5) == tokens


def test_top_k_larger_than_the_vocabulary_is_no_limit():
    assert drawn(LOGITS, top_k=10**6, temperature=5) == {0, 1, 2, 3, 4}


# shares 0.5, 0.25, 0.125, 0.125
HALVES = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().tolist()


@pytest.mark.parametrize(
    ("top_p", "tokens"),
    [(0.01, {0}), (0.49, {0}), (0.51, {0, 1}), (0.74, {0, 1}), (0.76, {0, 1, 2, 3}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_leaves_the_fewest_tokens_that_make_up_the_share(top_p, tokens):
    found = drawn(HALVES, top_p=top_p)
    if top_p == 0.76:
        assert found in ({0, 1, 2}, {0, 1, 3})  # two tokens are equally likely and one of them is enough
    else:
        assert found == tokens


def test_the_first_token_stays_however_small_the_share():
    assert drawn([0.0, 0.0, 0.0], top_p=0.01, seeds=20) <= {0, 1, 2}
    assert len(drawn([0.0, 0.0, 0.0], top_p=0.01, seeds=20)) == 1
    assert drawn([10.0, 9.9], top_p=0.01, seeds=20) == {0}


def test_top_p_counts_in_what_top_k_left():
    # of {0.5, 0.25} the first makes up two thirds
    assert drawn(HALVES, top_k=2, top_p=0.6) == {0}
    assert drawn(HALVES, top_k=2, top_p=0.7) == {0, 1}


@pytest.mark.parametrize(
    ("said", "penalty", "expected"),
    [
        ([], 2.0, [2.0, -1.0, 0.5]),
        ([0], 2.0, [1.0, -1.0, 0.5]),
        ([1], 2.0, [2.0, -2.0, 0.5]),
        ([0, 0, 1], 2.0, [1.0, -2.0, 0.5]),
        ([0, 1], 1.0, [2.0, -1.0, 0.5]),
        ([0], 0.5, [4.0, -1.0, 0.5]),
    ],
)
def test_the_penalty_makes_each_token_already_said_less_likely_once(said, penalty, expected):
    scores = torch.tensor([2.0, -1.0, 0.5])
    draw(scores, SampleOptions(temperature=0, repetition_penalty=penalty), said, generator())
    assert scores.tolist() == expected


@pytest.mark.parametrize(
    ("said", "options", "expected"),
    [
        ([], {"presence_penalty": 1.0, "frequency_penalty": 1.0}, [2.0, -1.0, 0.5]),
        ([0, 0, 1], {"presence_penalty": 1.0}, [1.0, -2.0, 0.5]),
        ([0, 0, 1], {"frequency_penalty": 0.5}, [1.0, -1.5, 0.5]),
        ([0, 0, 1], {"frequency_penalty": -0.5, "presence_penalty": 0.25}, [2.75, -0.75, 0.5]),
        ([0, 0], {"repetition_penalty": 2.0, "frequency_penalty": 0.5, "presence_penalty": 0.25}, [-0.25, -1.0, 0.5]),
    ],
)
def test_presence_counts_once_and_frequency_each_time(said, options, expected):
    scores = torch.tensor([2.0, -1.0, 0.5])
    draw(scores, SampleOptions(temperature=0, **options), said, generator())
    assert scores.tolist() == expected


def test_a_record_from_before_the_penalties_is_drawn_alike():
    assert SampleOptions(temperature=0.0, max_new_tokens=256).described() == {
        "temperature": 0.0, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 256,
    }  # fmt: skip
    assert SampleOptions(presence_penalty=0.5).described()["presence_penalty"] == 0.5


def test_the_penalty_leaves_banned_tokens_banned():
    scores = torch.tensor([0.0, -torch.inf, 1.0])
    assert draw(scores, SampleOptions(temperature=0, repetition_penalty=5), [1, 2], generator()) == 2
    assert scores[1] == -torch.inf


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature):
    exact = (torch.tensor(LOGITS, dtype=torch.float64) / temperature).softmax(0)
    count = 4000
    seen = frequencies(LOGITS, count, temperature=temperature)
    possible = exact > 0
    chi_square = (count * (seen - exact)[possible] ** 2 / exact[possible]).sum()
    assert seen[~possible].sum() == 0
    assert chi_square < 18.5  # 0.999 quantile of chi-square with 4 degrees of freedom


def test_the_nucleus_is_drawn_in_its_own_proportions():
    seen = frequencies(HALVES, 4000, top_p=0.7)
    assert torch.allclose(seen, torch.tensor([2 / 3, 1 / 3, 0, 0], dtype=torch.float64), atol=0.025)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("top_k", [0, 40])
def test_a_nucleus_larger_than_the_shortlist_is_found_all_the_same(monkeypatch, top_p, top_k):
    logits = torch.randn(200, generator=generator(9))
    sample = SampleOptions(temperature=1.5, top_p=top_p, top_k=top_k)
    wanted = sampling._nucleus(logits / 1.5, top_k or 200, top_p)
    for shortlist in (1, 7, 30, 199):
        monkeypatch.setattr(sampling, "SHORTLIST", shortlist)
        share, ids = sampling._nucleus(logits / 1.5, top_k or 200, top_p)
        count = int((share > 0).sum())
        assert count == int((wanted[0] > 0).sum())
        assert torch.equal(ids[:count], wanted[1][:count])
        assert torch.equal(share[:count], wanted[0][:count])
        assert draw(logits.clone(), sample, (), generator(4)) in wanted[1]


def test_the_nucleus_is_what_a_full_sort_gives():
    logits = torch.randn(5000, generator=generator(2)) * 3
    probabilities, order = logits.double().softmax(0).sort(descending=True)
    for top_p in (0.1, 0.5, 0.9, 0.99):
        wanted = order[probabilities.cumsum(0) - probabilities < top_p]
        share, ids = sampling._nucleus(logits, 5000, top_p)
        assert set(ids[share > 0].tolist()) == set(wanted.tolist())
        assert torch.allclose(share[share > 0].double(), probabilities[: len(wanted)], rtol=1e-4)

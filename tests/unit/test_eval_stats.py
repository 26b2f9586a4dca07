import math

import numpy as np
import pytest
from scipy import stats as oracle

from znatok.errors import DataError
from znatok.eval.stats import (
    Interval,
    bootstrap_mean,
    holm,
    mcnemar_exact,
    newcombe,
    paired_difference,
    wilson,
)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 5), (3, 10), (37, 60), (60, 60), (999, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_agrees_with_scipy(successes, n, level):
    expected = oracle.binomtest(successes, n).proportion_ci(level, method="wilson")
    got = wilson(successes, n, level)
    assert (got.value, got.n) == (successes / n, n)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_is_none_and_of_nonsense_is_refused():
    assert wilson(0, 0) == Interval(None, None, None, 0)
    with pytest.raises(DataError, match="6 successes of 5"):
        wilson(6, 5)


def test_newcombe_gives_the_published_example():
    """Altman, Machin, Bryant & Gardner, Statistics with Confidence (2000), table 6.2: 0.122, 0.011 to 0.226."""
    got = newcombe(14, 5, 0, 22)
    assert (got.value, got.low, got.high) == pytest.approx((-0.122, -0.226, -0.011), abs=5e-4)
    assert newcombe(14, 0, 5, 22).low == pytest.approx(0.011, abs=5e-4)


def test_newcombe_stays_wide_where_all_pairs_agree():
    """The bootstrap would give [1, 1] here: five questions can't show that a model always stops."""
    got = newcombe(0, 0, 5, 0)
    assert got.value == 1
    assert got.low == pytest.approx(1 - math.sqrt(2) * 0.43448, abs=1e-4)  # the Wilson bound at 0 of 5
    assert got.high == 1
    assert newcombe(0, 0, 0, 0).value is None


def test_newcombe_uses_negative_correlation_without_correction():
    wide, narrow = newcombe(1, 9, 9, 1), newcombe(9, 1, 1, 9)
    assert wide.value == narrow.value == 0
    assert wide.high > narrow.high


def test_bootstrap_mean_agrees_with_scipys_percentile_interval():
    values = rng(1).gamma(2.0, size=80)
    expected = oracle.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=rng(2))
    got = bootstrap_mean(list(values), rng(3), draws=20_000)
    assert got.value == pytest.approx(values.mean())
    assert (got.low, got.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.015)
    assert got.n == 80


def test_bootstrap_of_none_and_of_one_has_no_interval():
    assert bootstrap_mean([], rng()) == Interval(None, None, None, 0)
    assert bootstrap_mean([2.5], rng()) == Interval(2.5, None, None, 1)
    assert bootstrap_mean([1.0, 2.0, 3.0], rng(), clusters=["one fact"] * 3) == Interval(2.0, None, None, 3)


def test_weights_make_a_ratio_of_sums_not_a_mean_of_ratios():
    got = bootstrap_mean([10.0, 1.0], rng(), weights=[10, 100])
    assert got.value == pytest.approx(11 / 110)
    assert (got.low, got.high) == pytest.approx((0.01, 1.0))


def test_clusters_widen_the_interval():
    """Ten facts, each asked nine times with the same result, are ten observations and not ninety."""
    values = [v for v in rng(4).normal(size=10) for _ in range(9)]
    naive = bootstrap_mean(values, rng(5))
    honest = bootstrap_mean(values, rng(5), clusters=[i // 9 for i in range(90)])
    assert honest.high - honest.low > 2.5 * (naive.high - naive.low)
    assert honest.value == pytest.approx(naive.value)


def test_blocks_of_draws_cover_all_draws(monkeypatch):
    monkeypatch.setattr("znatok.eval.stats.BLOCK_CELLS", 50)
    got = bootstrap_mean([1.0] * 7, rng(), draws=1001)
    assert (got.low, got.high) == (1.0, 1.0)


def test_paired_difference_exact_p_agrees_with_scipy():
    a, b = rng(6).normal(size=10), rng(7).normal(0.6, size=10)
    expected = oracle.permutation_test((b - a,), np.mean, permutation_type="samples", n_resamples=np.inf)
    got = paired_difference(list(a), list(b), rng())
    assert got.p == pytest.approx(expected.pvalue)
    assert got.difference.value == pytest.approx((b - a).mean())


def test_paired_difference_drawn_p_agrees_with_the_t_test_where_that_holds():
    a = rng(8).normal(size=60)
    b = a + rng(9).normal(0.25, 1, size=60)
    got = paired_difference(list(a), list(b), rng(10), draws=20_000)
    assert got.p == pytest.approx(oracle.ttest_rel(a, b).pvalue, abs=0.01)


def test_p_of_drawn_patterns_is_never_zero():
    got = paired_difference([0.0] * 40, [1.0] * 40, rng(), draws=999)
    assert got.p == 1 / 1000
    assert (got.difference.low, got.difference.high) == (1.0, 1.0)


def test_five_questions_can_never_reach_significance():
    assert paired_difference([0.0] * 5, [1.0] * 5, rng()).p == 2 / 2**5


def test_clusters_are_flipped_together():
    got = paired_difference([0.0] * 6, [1.0] * 6, rng(), ["x", "x", "x", "y", "y", "z"])
    assert got.p == 2 / 2**3
    assert got.difference.n == 6


def test_paired_difference_of_nothing_of_one_and_of_no_change():
    empty = paired_difference([], [], rng())
    assert (empty.difference.value, empty.p) == (None, None)
    one = paired_difference([1.0], [3.0], rng())
    assert (one.difference, one.p) == (Interval(2.0, None, None, 1), 1.0)
    assert paired_difference([1.0, 2.0], [1.0, 2.0], rng()).p == 1.0


def test_paired_difference_with_weights():
    got = paired_difference([20.0, 30.0], [10.0, 25.0], rng(), weights=[10, 5])
    assert got.difference.value == pytest.approx(-1.0)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 0), (3, 9), (20, 22), (200, 900)])
def test_mcnemar_agrees_with_scipys_binomial_test(b, c):
    expected = oracle.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    with pytest.raises(DataError, match="finite"):
        bootstrap_mean([1.0, bad], rng())


def test_lengths_and_weights_are_checked():
    with pytest.raises(DataError, match="1 values against 2"):
        paired_difference([1.0], [1.0, 2.0], rng())
    with pytest.raises(DataError, match="1 clusters for 2"):
        bootstrap_mean([1.0, 2.0], rng(), clusters=["a"])
    with pytest.raises(DataError, match="positive"):
        bootstrap_mean([1.0, 2.0], rng(), weights=[1, 0])


def test_side_says_where_the_whole_interval_lies():
    assert [Interval(0, *ends, 9).side for ends in ((0.1, 0.2), (-2, -1), (-1, 1), (None, None))] == [1, -1, 0, 0]
    assert Interval(0, 0.0, 1.0, 9).side == 0


def test_same_generator_same_numbers():
    values = list(rng(1).normal(size=30))
    assert bootstrap_mean(values, rng(5)) == bootstrap_mean(values, rng(5))

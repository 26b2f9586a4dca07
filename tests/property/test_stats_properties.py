import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from znatok.eval.stats import bootstrap_mean, holm, mcnemar_exact, newcombe, paired_difference, wilson

numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
some = st.lists(numbers, min_size=2, max_size=12)
count = st.integers(0, 60)
p_values = st.lists(st.floats(0, 1), max_size=12)
fast = settings(max_examples=60, deadline=None)


def rng():
    return np.random.default_rng(0)


@given(st.integers(0, 400), st.integers(1, 400))
def test_wilson_holds_the_share_and_stays_in_bounds(successes, n):
    successes = min(successes, n)
    got = wilson(successes, n)
    assert 0 <= got.low <= got.value <= got.high <= 1
    assert got.low < got.high
    mirrored = wilson(n - successes, n)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - got.high, 1 - got.low))


@given(count, count, count, count)
def test_newcombe_holds_the_difference_and_changes_sign_with_the_arms(both, a_only, b_only, neither):
    got, swapped = newcombe(both, a_only, b_only, neither), newcombe(both, b_only, a_only, neither)
    if got.n == 0:
        return
    assert -1 <= got.low <= got.value + 1e-12
    assert got.value - 1e-12 <= got.high <= 1
    assert (swapped.low, swapped.high) == pytest.approx((-got.high, -got.low))


@fast
@given(some)
def test_bootstrap_stays_between_smallest_and_largest(values):
    got = bootstrap_mean(values, rng(), draws=200)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= got.low <= got.high <= max(values) + slack
    assert got.value == pytest.approx(math.fsum(values) / len(values), abs=1e-6)


@fast
@given(some)
def test_a_cluster_for_each_item_is_no_clustering(values):
    assert bootstrap_mean(values, rng(), 200, clusters=list(range(len(values)))) == bootstrap_mean(values, rng(), 200)


@fast
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12))
def test_swapping_the_arms_changes_the_sign_and_keeps_p(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    there, back = paired_difference(a, b, rng(), draws=100), paired_difference(b, a, rng(), draws=100)
    assert back.difference.value == pytest.approx(-there.difference.value)
    assert there.p == back.p
    assert 0 < there.p <= 1


@fast
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=14))
def test_sign_flips_of_yes_and_no_are_mcnemars_test(pairs):
    a, b = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    assert paired_difference(a, b, rng(), draws=10).p == pytest.approx(mcnemar_exact(lost, won))


@given(count, count)
def test_mcnemar_is_symmetric_and_a_probability(b, c):
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)
    assert 0 < mcnemar_exact(b, c) <= 1


@given(p_values)
def test_holm_only_raises_and_keeps_the_order(values):
    adjusted = holm(values)
    assert all(p <= q <= 1 for p, q in zip(values, adjusted, strict=True))
    by_raw = [adjusted[i] for i in sorted(range(len(values)), key=lambda i: values[i])]
    assert by_raw == sorted(by_raw)

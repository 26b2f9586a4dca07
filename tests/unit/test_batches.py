import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from znatok.train.batches import WINDOW, LengthGroupedBatches


def epoch(lengths, batch_size, seed=0, number=0):
    order = LengthGroupedBatches(lengths, batch_size, seed)
    order.set_epoch(number)
    return list(order)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=200), st.integers(1, 9), st.integers(0, 2**31 - 1))
def test_every_example_comes_once_an_epoch(lengths, batch_size, seed):
    batches = epoch(lengths, batch_size, seed)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == len(LengthGroupedBatches(lengths, batch_size, seed))
    assert sum(len(batch) != batch_size for batch in batches) <= 1


def test_the_order_follows_from_seed_and_epoch_alone():
    lengths = [(i * 37) % 101 + 1 for i in range(50)]
    first = epoch(lengths, 4, seed=1)
    assert epoch(lengths, 4, seed=1) == first
    assert epoch(lengths, 4, seed=1, number=1) != first
    assert epoch(lengths, 4, seed=2) != first


def test_runs_with_neighbouring_seeds_share_no_epoch():
    """A seed of seed + epoch would give run 1's second epoch to run 2 as its first."""
    lengths = list(range(1, 40))
    assert epoch(lengths, 4, seed=1, number=1) != epoch(lengths, 4, seed=2, number=0)


def test_iterating_again_gives_the_same_epoch_again():
    order = LengthGroupedBatches(list(range(1, 30)), 4, seed=3)
    assert list(order) == list(order)


def test_neighbours_of_like_length_leave_less_than_half_of_the_padding():
    lengths = [10 + (i * 7919) % 290 for i in range(160)]

    def padding(batches):
        return sum(max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) for batch in batches)

    in_file_order = [list(range(i, i + 4)) for i in range(0, 160, 4)]
    assert padding(epoch(lengths, 4)) < 0.3 * padding(in_file_order)


def test_long_and_short_batches_come_mixed():
    """Sorting a whole epoch would train the long answers first and the short ones last."""
    lengths = list(range(1, 4 * WINDOW * 4 + 1))
    means = [sum(lengths[i] for i in batch) / len(batch) for batch in epoch(lengths, 4)]
    falls = sum(later < earlier for earlier, later in itertools.pairwise(means))
    assert 0.3 < falls / len(means) < 0.7


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_a_batch_as_large_as_the_data_or_larger_is_whole(batch_size):
    batches = epoch([3, 1, 2, 5, 4], batch_size)
    assert sorted(map(len, batches)) == ([1] * 5 if batch_size == 1 else [5])

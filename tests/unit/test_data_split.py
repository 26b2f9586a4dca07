import hashlib
from pathlib import Path

import pytest

from znatok.data.clean import leaks
from znatok.data.load import read_pairs
from znatok.data.schema import Pair
from znatok.data.split import groups, split

REAL = Path(__file__).parents[2] / "data.jsonl"


def question(name):
    return hashlib.sha256(name.encode()).hexdigest()[:20] + "?"


def lone(count):
    """Pairs that have nothing in common."""
    return [Pair(question(f"lone {place}"), "да", fact_ids=(f"lone {place}",)) for place in range(count)]


def tied(count, fact):
    """Pairs of one fact."""
    return [Pair(question(f"{fact} {place}"), "да", fact_ids=(fact,)) for place in range(count)]


def facts(pairs):
    return {fact for pair in pairs for fact in pair.fact_ids}


@pytest.mark.parametrize(("share", "taken"), [(0.1, 4), (0.2, 8), (0.5, 20), (0.01, 1)])
def test_independent_pairs_give_exactly_the_share(share, taken):
    parts = split(lone(40), share, 42)
    assert (len(parts.train), len(parts.validation)) == (40 - taken, taken)
    assert parts.share == taken / 40
    assert parts.notes == ()


def test_no_pair_is_lost_and_both_sides_keep_the_order_of_the_file():
    pairs = lone(30)
    parts = split(pairs, 0.3, 1)
    assert sorted([*parts.train, *parts.validation], key=pairs.index) == pairs
    assert list(parts.train) == [pair for pair in pairs if pair in parts.train]


def test_the_seed_changes_the_choice_and_the_same_seed_does_not():
    pairs = lone(40)
    assert split(pairs, 0.2, 1) == split(pairs, 0.2, 1)
    assert split(pairs, 0.2, 1).validation != split(pairs, 0.2, 2).validation


def test_lines_and_order_of_the_file_do_not_matter():
    pairs = lone(30) + tied(8, "shared")
    moved = [Pair(p.prompt, p.response, p.topic, p.fact_ids, line) for line, p in enumerate(reversed(pairs), 1)]
    prompts = {pair.prompt for pair in split(pairs, 0.2, 42).validation}
    assert {pair.prompt for pair in split(moved, 0.2, 42).validation} == prompts


def test_a_new_pair_moves_few_others():
    before = {pair.prompt for pair in split(lone(200), 0.1, 42).validation}
    after = {pair.prompt for pair in split(lone(201), 0.1, 42).validation}
    assert len(before & after) >= 15


def test_pairs_tied_through_others_stay_together():
    chain = [
        Pair("а один?", "x", fact_ids=("1", "2")),
        Pair("б два?", "y", fact_ids=("3", "2")),
        Pair("в три?", "z", fact_ids=("3",)),
    ]
    assert [sorted(part) for part in groups([*chain, Pair("г четыре?", "w")])] == [[0, 1, 2], [3]]


def test_equal_and_similar_texts_tie_pairs_without_facts():
    answer = "Сопло из латуни проводит тепло лучше стального, но быстро стирается наполненным пластиком."
    pairs = [
        Pair("Зачем латунное сопло?", "Тепло."),
        Pair("ЗАЧЕМ латунное  сопло?", "Дёшево."),
        Pair("Латунь или сталь?", answer),
        Pair("Что выбрать для печати?", answer.replace("быстро", "быстрее")),
        Pair("Как хранить катушки?", "Сухо."),
    ]
    assert sorted(map(sorted, groups(pairs))) == [[0, 1], [2, 3], [4]]


def test_validation_is_drawn_from_small_groups_when_most_pairs_hang_together():
    pairs = tied(70, "hub") + lone(20) + tied(5, "small") + tied(5, "other")
    parts = split(pairs, 0.1, 42)
    assert len(parts.validation) == 10
    assert facts(parts.train).isdisjoint(facts(parts.validation))


def test_a_validation_set_that_can_only_be_smaller_says_so():
    parts = split(tied(90, "hub") + lone(4), 0.2, 42)
    assert len(parts.validation) == 4
    (note,) = parts.notes
    assert note.startswith("validation has 4 pairs instead of 19: 90 of 94 are tied")


def test_the_nearest_sum_of_groups_is_taken():
    pairs = tied(60, "hub") + tied(7, "b") + tied(7, "c") + tied(4, "d")
    assert len(split(pairs, 10 / 78, 42).validation) == 11  # of 4, 7, 11, 14 and 18
    assert len(split(pairs, 8 / 78, 42).validation) == 7


def test_a_group_of_more_than_twice_the_share_is_not_taken():
    parts = split(tied(30, "a") + tied(30, "b"), 0.1, 42)
    assert parts.validation == ()
    assert parts.notes[0].startswith("validation is off: 30 of 60 pairs are tied")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_pairs_are_all_for_training(count):
    parts = split(lone(count), 0.5, 42)
    assert (len(parts.train), parts.validation, parts.share) == (count, (), 0)
    assert parts.notes == (f"validation is off: {count} pairs are too few to split",)


def test_three_pairs_can_be_split_and_one_group_can_not():
    assert len(split(lone(3), 0.1, 42).validation) == 1
    assert split(tied(3, "a"), 0.5, 42).validation == ()


def test_a_share_of_zero_turns_validation_off_without_a_note():
    parts = split(lone(9), 0, 42)
    assert (len(parts.train), parts.validation, parts.notes) == (9, (), ())


@pytest.mark.skipif(not REAL.exists(), reason="the package is tested without its data")
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("seed", [0, 42])
def test_the_published_data_splits_as_asked_and_shares_nothing(share, seed):
    pairs = read_pairs(REAL).pairs
    parts = split(pairs, share, seed)
    assert len(parts.validation) == round(share * len(pairs))
    assert leaks(parts.train, parts.validation) == []

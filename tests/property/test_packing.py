"""Packs of any examples: nothing is lost, nothing is shared that must not be, and answers alone are predicted."""

from typing import NamedTuple

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from znatok.tokens.collate import Collator, ExampleSet
from znatok.tokens.packing import common_prefix, pack, pack_batch
from znatok.train.computation import rows_of


class Row(NamedTuple):
    ids: tuple[int, ...]
    answer_start: int


@st.composite
def rows(draw):
    """An example over few token ids, so that beginnings are often alike."""
    ids = tuple(draw(st.lists(st.integers(0, 2), min_size=2, max_size=12)))
    return Row(ids, draw(st.integers(1, len(ids) - 1)))


@st.composite
def related(draw):
    """Examples with a common beginning, some of them equal, some of them beginnings of others."""
    common = tuple(draw(st.lists(st.integers(0, 9), max_size=6)))
    drawn = draw(st.lists(rows(), min_size=1, max_size=5))
    made = [Row(common + row.ids, len(common) + row.answer_start) for row in drawn]
    if draw(st.booleans()):
        made.append(made[0])
    if draw(st.booleans()) and len(made[0].ids) > 2:
        shorter = made[0].ids[:-1]
        made.append(Row(shorter, min(made[0].answer_start, len(shorter) - 1)))
    return draw(st.permutations(made))


batches = st.lists(rows(), min_size=1, max_size=6) | related()


def parts(packed):
    """Yield each example's rows of the pack, the prefix first."""
    start = packed.prefix
    for length in packed.lengths:
        yield [*range(packed.prefix), *range(start, start + length)]
        start += length


@given(batches, st.booleans())
@example([Row((1, 2), 1)], True)
@example([Row((1, 2, 3, 4), 3), Row((1, 2, 3, 4), 3)], True)
@example([Row((1, 2, 3), 2), Row((1, 2, 3, 4), 3)], True)
def test_every_example_can_be_read_out_of_its_pack(examples, share):
    packed = pack(examples, share=share)
    assert len(packed.lengths) == len(examples)
    assert packed.prefix + sum(packed.lengths) == len(packed.ids_T) == len(packed.positions_T)
    for one, at in zip(examples, parts(packed), strict=True):
        assert tuple(packed.ids_T[at].tolist()) == one.ids
        assert packed.positions_T[at].tolist() == list(range(len(one.ids)))


@given(batches, st.booleans())
def test_the_rows_predict_the_answers_and_nothing_else(examples, share):
    packed = pack(examples, share=share)
    predicted = iter(zip(packed.rows_N.tolist(), packed.targets_N.tolist(), strict=True))
    for one, at in zip(examples, parts(packed), strict=True):
        for place in range(one.answer_start, len(one.ids)):
            assert next(predicted) == (at[place - 1], one.ids[place])
    assert next(predicted, None) is None
    assert len(set(packed.rows_N.tolist())) == len(packed.rows_N)  # no row predicts for two examples


@given(batches)
def test_the_prefix_is_shared_by_all_and_no_longer_than_it_may_be(examples):
    prefix = common_prefix(examples)
    assert prefix == pack(examples).prefix
    assert len({one.ids[:prefix] for one in examples}) == 1
    assert all(prefix < one.answer_start for one in examples)  # the row that predicts the answer's start is one's own
    if len(examples) == 1:
        assert prefix == 0
    else:  # and it is as long as that allows
        assert (
            len({one.ids[: prefix + 1] for one in examples}) > 1 or min(e.answer_start for e in examples) == prefix + 1
        )


@given(rows(), st.integers(2, 4))
def test_equal_examples_share_their_prompt_but_for_its_last_token(row, copies):
    packed = pack([row] * copies)
    assert packed.prefix == row.answer_start - 1
    assert packed.lengths == (len(row.ids) - row.answer_start + 1,) * copies
    assert len(packed.rows_N) == copies * (len(row.ids) - row.answer_start)


def test_an_example_may_be_the_beginning_of_another():
    packed = pack([Row((7, 8, 9, 1, 2), 4), Row((7, 8, 9, 1), 3), Row((7, 8, 9), 2)])
    assert packed.prefix == 1
    assert packed.ids_T.tolist() == [7, 8, 9, 1, 2, 8, 9, 1, 8, 9]
    assert packed.rows_N.tolist() == [3, 6, 8]
    assert packed.targets_N.tolist() == [2, 1, 9]


@given(batches)
def test_without_sharing_there_is_no_prefix(examples):
    packed = pack(examples, share=False)
    assert packed.prefix == 0
    assert packed.ids_T.tolist() == [token for one in examples for token in one.ids]
    assert packed.tokens == len(packed.ids_T)


@given(batches, st.booleans())
def test_tokens_are_counted_as_if_each_example_were_computed_alone(examples, share):
    packed = pack(examples, share=share)
    assert packed.tokens == sum(len(one.ids) for one in examples)
    assert len(packed.ids_T) == packed.tokens - (len(examples) - 1) * packed.prefix


@given(batches, st.booleans())
def test_ids_are_what_embeddings_and_losses_take(examples, share):
    packed = pack(examples, share=share)
    for tensor in (packed.ids_T, packed.positions_T, packed.rows_N, packed.targets_N):
        assert tensor.dtype is torch.int64


@given(batches, st.integers(1, 40), st.booleans())
def test_a_batch_is_packed_in_order_within_the_limit(examples, limit, share):
    packs = pack_batch(examples, limit, share=share)
    counts = [len(packed.lengths) for packed in packs]
    assert sum(counts) == len(examples)
    start = 0
    for packed, count in zip(packs, counts, strict=True):
        group = examples[start : start + count]
        assert len(packed.ids_T) <= limit or count == 1
        assert packed.ids_T.tolist() == pack(group, share=share).ids_T.tolist()
        assert packed.targets_N.tolist() == pack(group, share=share).targets_N.tolist()
        start += count
        if start < len(examples):  # a pack is closed only because the next example does not fit
            assert len(pack(examples[start - count : start + 1], share=share).ids_T) > limit


@given(batches, st.integers(1, 40))
def test_every_answer_token_is_predicted_once_however_it_is_packed(examples, limit):
    wanted = [token for one in examples for token in one.ids[one.answer_start :]]
    for size in (limit, 10**6):
        assert [token for packed in pack_batch(examples, size) for token in packed.targets_N.tolist()] == wanted


class Encoded(NamedTuple):
    ids: tuple[int, ...]
    answer_start: int
    pair: None = None


@given(batches)
def test_a_padded_batch_gives_its_examples_back(examples):
    made = ExampleSet([Encoded(*one) for one in examples])
    batch = Collator(pad_id=0)([made[n] for n in range(len(made))])
    found = rows_of(batch)
    assert [(row.ids, row.answer_start) for row in found] == [tuple(one) for one in examples]

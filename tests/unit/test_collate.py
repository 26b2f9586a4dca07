import pytest
import torch
from torch.utils.data import DataLoader

from znatok.data.schema import Pair
from znatok.tokens.collate import IGNORE, Collator, ExampleSet
from znatok.tokens.encode import Example

PAIR = Pair("q", "a")
EXAMPLES = [Example((5, 6, 7, 8, 2), 3, PAIR), Example((5, 2), 1, PAIR), Example((9, 0, 4), 2, PAIR)]


def test_labels_are_the_trained_ids_and_ignored_elsewhere():
    rows = ExampleSet(EXAMPLES)
    assert len(rows) == 3
    assert rows[0] == {"input_ids": [5, 6, 7, 8, 2], "labels": [IGNORE, IGNORE, IGNORE, 8, 2]}
    assert rows[2] == {"input_ids": [9, 0, 4], "labels": [IGNORE, IGNORE, 4]}


def test_batches_are_padded_on_the_right_and_padding_is_neither_seen_nor_trained():
    rows = ExampleSet(EXAMPLES)
    batch = Collator(pad_id=0)([rows[1], rows[0], rows[2]])
    assert batch["input_ids"].tolist() == [[5, 2, 0, 0, 0], [5, 6, 7, 8, 2], [9, 0, 4, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    i = IGNORE
    assert batch["labels"].tolist() == [[i, 2, i, i, i], [i, i, i, 8, 2], [i, i, 4, i, i]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_an_end_token_that_is_also_the_padding_is_still_trained():
    batch = Collator(pad_id=2)([ExampleSet(EXAMPLES)[1], ExampleSet(EXAMPLES)[0]])
    assert batch["labels"][0].tolist() == [IGNORE, 2, IGNORE, IGNORE, IGNORE]
    assert batch["attention_mask"][0].tolist() == [1, 1, 0, 0, 0]


def test_a_batch_of_one_is_not_padded():
    batch = Collator(pad_id=0)([ExampleSet(EXAMPLES)[2]])
    assert batch["input_ids"].tolist() == [[9, 0, 4]]
    assert batch["attention_mask"].all()


def test_an_example_without_a_trained_token_is_never_passed_on():
    rows = ExampleSet([*EXAMPLES, Example((5, 6), 2, PAIR)])
    with pytest.raises(AssertionError, match="without a trained token"):
        Collator(pad_id=0)([rows[0], rows[3]])


def test_a_data_loader_can_use_both():
    loader = DataLoader(ExampleSet(EXAMPLES), batch_size=2, collate_fn=Collator(pad_id=0))
    assert [tuple(batch["labels"].shape) for batch in loader] == [(2, 5), (1, 3)]

"""Losses of given answers against what transformers computes."""

import pytest
import torch

import tiny
from znatok.config import LoraOptions
from znatok.data.schema import Pair
from znatok.model.adapters import base_only, inject
from znatok.model.score import answer_losses, head_weight, hidden_states
from znatok.tokens.chat import ChatFormat
from znatok.tokens.collate import Collator, ExampleSet
from znatok.tokens.encode import EncodeRule, encode_pairs


@pytest.fixture(scope="module")
def examples():
    chat = ChatFormat("chatml", "", tiny.tiny_tokenizer(), 2)
    return encode_pairs([Pair(q, a) for q, a in tiny.PAIRS[:4]], chat, EncodeRule("Ты знаток.", 256)).examples


def transformers_losses(model, examples):
    losses = []
    for row in ExampleSet(examples):
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        losses.append(float(mean) * sum(label >= 0 for label in row["labels"]))
    return losses


def test_losses_are_transformers_own_and_counts_include_the_end_token(examples):
    model = tiny.tiny_model(initializer_range=0.3)
    scored = answer_losses(model, examples)
    assert [count for _, count in scored] == [example.answer_tokens for example in examples]
    assert [loss for loss, _ in scored] == pytest.approx(transformers_losses(model, examples), rel=1e-5)


def test_an_untied_head_is_used(examples):
    model = tiny.tiny_model(tie_word_embeddings=False, initializer_range=0.3)
    assert [loss for loss, _ in answer_losses(model, examples)] == pytest.approx(
        transformers_losses(model, examples), rel=1e-5
    )
    assert head_weight(model) is not model.get_input_embeddings().weight
    assert not head_weight(model).requires_grad


def test_neither_order_nor_company_changes_a_loss(examples):
    model = tiny.tiny_model(initializer_range=0.3).bfloat16()
    scored = answer_losses(model, examples)
    assert answer_losses(model, examples[::-1]) == scored[::-1]
    assert [answer_losses(model, [example])[0] for example in examples] == scored


def test_padding_changes_no_hidden_state_of_an_example(examples):
    model = tiny.tiny_model(initializer_range=0.3)
    rows = ExampleSet(examples)
    batch = Collator(pad_id=0)([rows[i] for i in range(len(rows))])
    with torch.no_grad():
        together = hidden_states(model, batch["input_ids"], batch["attention_mask"])
        for row, hidden in zip(rows, together, strict=True):
            ids = torch.tensor([row["input_ids"]])
            torch.testing.assert_close(hidden[: ids.shape[1]], hidden_states(model, ids, torch.ones_like(ids))[0])


@pytest.mark.parametrize("training", [True, False])
def test_scoring_has_no_dropout_and_leaves_the_mode_as_it_was(examples, training):
    bare = tiny.tiny_model(initializer_range=0.3)
    wanted = answer_losses(bare, examples)
    model = inject(tiny.tiny_model(initializer_range=0.3), LoraOptions(lora_dropout=0.9), seed=0).train(training)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    tuned = answer_losses(model, examples)
    assert tuned == answer_losses(model, examples) != wanted
    assert model.training is training
    with base_only(model):
        assert answer_losses(model, examples) == wanted
    assert all(parameter.grad is None for parameter in model.parameters())

import dataclasses
import math

import pytest
import torch

import helpers
import tiny
from znatok.config import TrainOptions
from znatok.train.batches import LengthGroupedBatches
from znatok.train.plan import PROBE_TOKENS, Plan, count, probe
from znatok.train.prepare import prepare

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def ready(tiny_dir, pairs_file, tmp_path):
    return prepare(helpers.settings(tiny_dir, pairs_file, tmp_path / "run"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
        {"per_device_train_batch_size": 1, "num_train_epochs": 2},
        {"per_device_train_batch_size": 100},
        {"max_steps": 6},
        {"gradient_accumulation_steps": 2, "max_steps": 4},
    ],
)
def test_counts_equal_those_of_going_through_the_run(ready, options):
    options = TrainOptions(**options)
    made = count(ready.train, ready.validation, options, ready.model)
    steps = padded = tokens = answers = 0
    epoch = 0
    order = LengthGroupedBatches([len(e.ids) for e in ready.train], options.per_device_train_batch_size, options.seed)
    accumulated = options.gradient_accumulation_steps
    while not (steps >= options.max_steps if options.max_steps else epoch >= options.num_train_epochs):
        order.set_epoch(epoch)
        batches = list(order)
        for start in range(0, len(batches), accumulated):
            steps += 1
            for batch in batches[start : start + accumulated]:
                padded += max(len(ready.train[i].ids) for i in batch) * len(batch)
                tokens += sum(len(ready.train[i].ids) for i in batch)
                answers += sum(len(ready.train[i].ids[ready.train[i].answer_start :]) for i in batch)
        epoch += 1
    assert (made.steps, made.epochs) == (steps, epoch)
    assert (made.tokens, made.padded_tokens, made.answer_tokens) == (tokens, padded, answers)
    assert (made.examples, made.validation) == (9, 1)
    assert made.trainable == sum(p.numel() for name, p in ready.model.named_parameters() if "lora_" in name)
    assert made.parameters == made.trainable + sum(p.numel() for p in tiny.tiny_model().parameters())


def test_the_last_epoch_may_be_a_part(ready):
    made = count(ready.train, ready.validation, TrainOptions(num_train_epochs=1.5), ready.model)
    whole = count(ready.train, ready.validation, TrainOptions(num_train_epochs=1), ready.model)
    assert made.steps == math.ceil(1.5 * whole.steps) == 5
    assert whole.tokens < made.tokens < 2 * whole.tokens
    assert whole.padded_tokens < made.padded_tokens < 2 * whole.padded_tokens


def test_what_was_planned_is_what_training_does(tiny_dir, pairs_file, tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    made = prepare(helpers.settings(tiny_dir, pairs_file, tmp_path / "planned", **options)).plan
    run = helpers.trained(tiny_dir, pairs_file, tmp_path / "run", **options)
    done = helpers.rows(run)
    assert (made.steps, made.tokens) == (len(done), done[-1]["tokens"])


def test_the_probe_leaves_no_trace(ready):
    learned = {name: p.detach().clone() for name, p in ready.model.named_parameters()}
    torch.manual_seed(5)
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    ready.model.eval()
    made = probe(ready.plan, ready.train, ready.validation, ready.model, batch_size=4)
    assert all(torch.equal(p, learned[name]) for name, p in ready.model.named_parameters())
    assert all(p.grad is None for p in ready.model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == threads
    assert not ready.model.training
    assert made.seconds > 0
    assert made.probe_tokens_per_second > 0
    assert made.peak_rss_bytes > 50_000_000


def test_the_estimate_grows_with_the_work(ready):
    one = probe(ready.plan, ready.train, (), ready.model, batch_size=4)
    more = dataclasses.replace(ready.plan, padded_tokens=1000 * ready.plan.padded_tokens)
    assert probe(more, ready.train, (), ready.model, batch_size=4).seconds > 50 * one.seconds


def test_a_single_example_can_be_probed(ready):
    longest = max(ready.train, key=lambda e: len(e.ids))
    assert len(longest.ids) < PROBE_TOKENS
    assert probe(ready.plan, [longest], (), ready.model, batch_size=4).seconds > 0


def test_the_plan_is_said_in_plain_words():
    made = Plan(144, 16, 108, 3.0, 40_000, 44_000, 30_000, 9_232_384, 1_552_946_688, 5432.1, 7_100_000_000, 21.0)
    lines = made.lines()
    assert lines[:4] == [
        "pairs: 144 to train, 16 to validate",
        "steps: 108 in 3 epochs",
        "tokens: 40000, of them 30000 trained; computed with padding: 44000",
        "adapter: 9 232 384 parameters, 0.59 % of the model's 1 552 946 688",
    ]
    assert lines[4] == "time: about 1:30:32, from a probe on this machine"
    assert lines[5].startswith("memory: about 7.1 GB at most; free now: ")
    assert len(Plan(**{**made.to_json(), "seconds": None}).lines()) == 4

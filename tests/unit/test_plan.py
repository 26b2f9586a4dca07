import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

import helpers
import tiny
from znatok.config import TrainOptions
from znatok.fast.memory import BESIDE
from znatok.train import plan
from znatok.train.batches import LengthGroupedBatches
from znatok.train.computation import Padded
from znatok.train.plan import ADAM_BYTES, PROBE_TOKENS, Plan, count, probe
from znatok.train.prepare import prepare

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def ready(tiny_dir, pairs_file, tmp_path):
    return prepare(helpers.settings(tiny_dir, pairs_file, tmp_path / "run", pack_tokens=1024))


@pytest.fixture(params=["packed", "padded"])
def computation(request, ready):
    return ready.engine.computation if request.param == "packed" else Padded(ready.model)


def computed(computation, batch):
    """Return the rows a batch takes, counted by hand."""
    ids = [example.ids for example in batch]
    if isinstance(computation, Padded):
        return max(map(len, ids)) * len(ids)
    assert sum(map(len, ids)) <= computation.limit  # one pack
    shared = 0
    while len(ids) > 1 and len({row[shared] for row in ids}) == 1 and all(e.answer_start > shared + 1 for e in batch):
        shared += 1
    return sum(map(len, ids)) - (len(ids) - 1) * shared


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
def test_counts_equal_those_of_going_through_the_run(ready, computation, options):
    options = TrainOptions(**options)
    made = count(ready.train, ready.validation, options, ready.model, computation)
    steps = rows = tokens = answers = 0
    epoch = 0
    order = LengthGroupedBatches([len(e.ids) for e in ready.train], options.per_device_train_batch_size, options.seed)
    accumulated = options.gradient_accumulation_steps
    while not (steps >= options.max_steps if options.max_steps else epoch >= options.num_train_epochs):
        order.set_epoch(epoch)
        batches = list(order)
        for start in range(0, len(batches), accumulated):
            steps += 1
            for batch in batches[start : start + accumulated]:
                rows += computed(computation, [ready.train[i] for i in batch])
                tokens += sum(len(ready.train[i].ids) for i in batch)
                answers += sum(len(ready.train[i].ids[ready.train[i].answer_start :]) for i in batch)
        epoch += 1
    assert (made.steps, made.epochs) == (steps, epoch)
    assert (made.tokens, made.computed_tokens, made.answer_tokens) == (tokens, rows, answers)
    assert (made.examples, made.validation) == (9, 1)
    assert made.trainable == sum(p.numel() for name, p in ready.model.named_parameters() if "lora_" in name)
    assert made.parameters == made.trainable + sum(p.numel() for p in tiny.tiny_model().parameters())


def test_the_last_epoch_may_be_a_part(ready, computation):
    made = count(ready.train, ready.validation, TrainOptions(num_train_epochs=1.5), ready.model, computation)
    whole = count(ready.train, ready.validation, TrainOptions(num_train_epochs=1), ready.model, computation)
    assert made.steps == math.ceil(1.5 * whole.steps) == 5
    assert whole.tokens < made.tokens < 2 * whole.tokens
    assert whole.computed_tokens < made.computed_tokens < 2 * whole.computed_tokens


def test_what_was_planned_is_what_training_does(tiny_dir, pairs_file, tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    made = prepare(helpers.settings(tiny_dir, pairs_file, tmp_path / "planned", **options)).plan
    run = helpers.trained(tiny_dir, pairs_file, tmp_path / "run", **options)
    done = helpers.rows(run)
    assert (made.steps, made.tokens) == (len(done), done[-1]["tokens"])


def test_the_probe_leaves_no_trace(ready, computation):
    learned = {name: p.detach().clone() for name, p in ready.model.named_parameters()}
    torch.manual_seed(5)
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    ready.model.eval()
    made = probe(ready.plan, ready.train, ready.validation, ready.model, computation)
    assert all(torch.equal(p, learned[name]) for name, p in ready.model.named_parameters())
    assert all(p.grad is None for p in ready.model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == threads
    assert not ready.model.training
    assert made.seconds > 0
    assert made.probe_tokens_per_second > 0
    assert made.peak_rss_bytes > 50_000_000


def test_the_estimate_grows_with_the_work(ready, computation, monkeypatch):
    monkeypatch.setattr(plan, "_step", lambda *_: (1.0, 3.0))  # seconds forward, and of the whole step
    one = probe(ready.plan, ready.train, (), ready.model, computation)
    more = dataclasses.replace(ready.plan, computed_tokens=1000 * ready.plan.computed_tokens)
    assert probe(more, ready.train, (), ready.model, computation).seconds == pytest.approx(1000 * one.seconds)
    validated = probe(ready.plan, ready.train, ready.validation, ready.model, computation)
    text = sum(len(e.ids) for e in ready.validation) * ready.plan.epochs
    assert validated.seconds - one.seconds == pytest.approx(text / 3 * one.seconds / ready.plan.computed_tokens)


@pytest.mark.parametrize("given_back", [True, False])
def test_memory_is_that_of_a_pack_counted_twice(ready, computation, monkeypatch, given_back):
    seen = iter([1_000_000_000, 1_400_000_000])
    monkeypatch.setattr(plan, "give_back", lambda: given_back)
    monkeypatch.setattr(plan, "peak_rss_bytes", lambda: 0 if given_back else 1_400_000_000)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=next(seen)))
    monkeypatch.setattr(plan, "psutil", SimpleNamespace(Process=lambda: process))
    longest = max(ready.train, key=lambda e: len(e.ids))
    made = probe(ready.plan, [longest], (), ready.model, computation)
    assert made.peak_rss_bytes == 1_800_000_000 + ADAM_BYTES * made.trainable + BESIDE


def test_a_peak_already_reached_is_no_less(ready, computation, monkeypatch):
    monkeypatch.setattr(plan, "peak_rss_bytes", lambda: 1 << 50)
    assert probe(ready.plan, ready.train, (), ready.model, computation).peak_rss_bytes >= 1 << 50


def test_a_single_example_can_be_probed(ready, computation):
    longest = max(ready.train, key=lambda e: len(e.ids))
    assert len(longest.ids) < PROBE_TOKENS
    assert probe(ready.plan, [longest], (), ready.model, computation).seconds > 0


def test_the_plan_is_said_in_plain_words():
    made = Plan(144, 16, 108, 3.0, 40_000, 34_000, 30_000, 9_232_384, 1_552_946_688, 4, 5432.1, 7_100_000_000, 21.0)
    lines = made.lines()
    assert lines[:4] == [
        "pairs: 144 to train, 16 to validate",
        "steps: 108 in 3 epochs",
        "tokens: 40000, of them 30000 trained; rows computed for it: 34000",
        "adapter: 9 232 384 parameters, 0.59 % of the model's 1 552 946 688",
    ]
    assert lines[4] == "time: about 1:30:32, from a probe on this machine"
    assert lines[5].startswith("memory: about 7.1 GB at most; free now: ")
    assert len(Plan(**{**made.to_json(), "seconds": None}).lines()) == 4

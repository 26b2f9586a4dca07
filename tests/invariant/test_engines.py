"""The same run by other means: packed or padded, whole or in parts, in int8 or float."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import helpers
import packs
from znatok.model.adapters import load_weights
from znatok.tokens.packing import pack
from znatok.train import engine
from znatok.train.computation import FastPacked, Padded
from znatok.train.prepare import prepare

pytestmark = pytest.mark.filterwarnings(packs.QUIET)

PLAIN = {"lora": {"lora_dropout": 0.0}, "num_train_epochs": 2, "per_device_train_batch_size": 4}


def with_layers_of_transformers(monkeypatch):
    monkeypatch.setattr(engine, "obstacle", lambda _model: "a test asks for it")


def same(ours, theirs, slack):
    assert helpers.losses(ours) == pytest.approx(helpers.losses(theirs), abs=slack)
    found, expected = helpers.adapter(ours), helpers.adapter(theirs)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=slack)


@pytest.mark.parametrize("splits", [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}])
def test_a_packed_run_equals_a_padded_one(tiny_dir, pairs_file, tmp_path, monkeypatch, splits):
    packed = helpers.trained(tiny_dir, pairs_file, tmp_path / "packed", **PLAIN | splits)
    with_layers_of_transformers(monkeypatch)
    padded = helpers.trained(tiny_dir, pairs_file, tmp_path / "padded", **PLAIN | splits)
    same(packed, padded, 1e-4)
    ours, theirs = helpers.validations(packed), helpers.validations(padded)
    assert [row["val_loss"] for row in ours] == pytest.approx([row["val_loss"] for row in theirs], abs=1e-5)


@pytest.mark.parametrize("memory", [{"pack_tokens": 16}, {"pack_tokens": 120}, {"low_memory": True}], ids=str)
def test_parts_of_a_batch_train_as_the_whole(tiny_dir, pairs_file, tmp_path, memory):
    options = PLAIN | {"per_device_train_batch_size": 9}
    whole = helpers.trained(tiny_dir, pairs_file, tmp_path / "whole", **options)
    parts = helpers.trained(tiny_dir, pairs_file, tmp_path / "parts", **options | memory)
    same(parts, whole, 1e-4)


def test_memory_is_saved_by_smaller_parts(tiny_dir, pairs_file, tmp_path):
    options = {"per_device_train_batch_size": 9, "pack_tokens": 1024}
    ready = prepare(helpers.settings(tiny_dir, pairs_file, tmp_path / "run", **options))
    whole, batch = ready.engine.computation, ready.train
    assert isinstance(whole, FastPacked)
    parts = FastPacked(whole.backbone, whole.head, 120)
    single = max(len(example.ids) for example in batch)
    assert single <= parts.largest(batch) <= max(120, single) < whole.largest(batch) == whole.rows(batch)
    assert whole.rows(batch) < parts.rows(batch) <= sum(len(example.ids) for example in batch)
    assert Padded(ready.model).rows(batch) == Padded(ready.model).largest(batch) == len(batch) * single


def test_computations_score_alike(tiny_dir, pairs_file, tmp_path):
    ready = prepare(helpers.settings(tiny_dir, pairs_file, tmp_path / "run"))
    packed, padded = ready.engine.computation.losses(ready.train), Padded(ready.model).losses(ready.train)
    assert [count for _total, count in packed] == [example.answer_tokens for example in ready.train]
    assert [count for _total, count in packed] == [count for _total, count in padded]
    assert [total for total, _count in packed] == pytest.approx([total for total, _count in padded], rel=1e-5)


def test_scoring_drops_nothing_and_keeps_no_gradients(tiny_dir, pairs_file, tmp_path):
    ready = prepare(helpers.settings(tiny_dir, pairs_file, tmp_path / "run", lora={"lora_dropout": 0.5}))
    for parameter in packs.learned(ready.model).values():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    computation = ready.engine.computation
    state = torch.get_rng_state()
    assert computation.losses(ready.train) == computation.losses(ready.train)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_adapter_trained_in_int8_works_in_stock_peft(tiny_dir, pairs_file, tmp_path, int8_here):
    config = helpers.settings(tiny_dir, pairs_file, tmp_path / "run", dtype="int8", learning_rate=0.02)
    run = helpers.trained(tiny_dir, pairs_file, tmp_path / "run", dtype="int8", learning_rate=0.02)
    ready = prepare(config)
    ids = ready.train[0].ids
    base = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)
    with torch.no_grad():
        before = base(input_ids=torch.tensor([ids])).logits[0, :-1]
        after = PeftModel.from_pretrained(base, run.path).eval()(input_ids=torch.tensor([ids])).logits[0, :-1]

        load_weights(ready.model, run.path)
        computation, packed = ready.engine.computation, pack([packs.Row(ids, 1)])
        head = ready.model.get_output_embeddings().weight.float()
        computation.backbone.training = False
        ours = computation.backbone.hidden(packed) @ head.t()
        silent = computation.backbone.without_adapters().hidden(packed) @ head.t()
    stock, rounded = (after - before).flatten(), (ours - silent).flatten()
    assert float(stock.norm()) > 0.1 * float(before.norm())  # it learned something
    assert torch.cosine_similarity(stock, rounded, dim=0) > 0.95
    assert float(rounded.norm()) == pytest.approx(float(stock.norm()), rel=0.1)


def test_an_int8_run_learns_what_a_float_run_learns(tiny_dir, pairs_file, tmp_path, int8_here):
    exact = helpers.trained(tiny_dir, pairs_file, tmp_path / "float", **PLAIN)
    rounded = helpers.trained(tiny_dir, pairs_file, tmp_path / "int8", dtype="int8", **PLAIN)
    assert helpers.losses(rounded) == pytest.approx(helpers.losses(exact), rel=2e-3)
    learned = [
        torch.cat([tensor.flatten() for name, tensor in helpers.adapter(run).items() if "lora_B" in name])
        for run in (rounded, exact)
    ]
    assert torch.cosine_similarity(*learned, dim=0) > 0.95

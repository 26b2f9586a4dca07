"""Answers of a model in int8 by the fast engine: as transformers' layers would say them, whoever else asks."""

import pytest
import torch

import packs
import tiny
from znatok.config import ModelOptions, SampleOptions
from znatok.fast.kernels import rows_apart
from znatok.generate.engine import Request
from znatok.generate.rows import INT8_SLOTS, RowCache
from znatok.generate.torch_engine import TorchEngine, _packed_layers
from znatok.model.adapters import base_only
from znatok.model.load import load_base
from znatok.tokens.chat import choose_format, dialogue

pytestmark = [pytest.mark.filterwarnings(packs.QUIET), pytest.mark.usefixtures("int8_here")]
SYSTEM = "Ты знаток."


@pytest.fixture
def loaded(tiny_dir):
    return load_base(ModelOptions(model_name=str(tiny_dir), dtype="int8"))


@pytest.fixture
def chat(loaded):
    return choose_format(loaded.tokenizer, loaded.model.get_input_embeddings().weight)


@pytest.fixture
def tuned(loaded):
    return packs.adapted(loaded.model, spread=0.3)


def requests(**sample):
    options = SampleOptions(**({"temperature": 0.0, "max_new_tokens": 8} | sample))
    return [
        Request(tuple(dialogue(question, SYSTEM)), options, seed) for seed, (question, _answer) in enumerate(tiny.PAIRS)
    ]


def said(engine, asked):
    found = [[] for _ in asked]
    for index, token, _stop in engine.tokens(asked):
        found[index].append(token)
    return found


@pytest.mark.parametrize("sample", [{}, {"temperature": 0.9, "top_p": 0.95}], ids=["greedy", "sampled"])
def test_company_changes_no_answer(tuned, chat, sample):
    engine, asked = TorchEngine(tuned, chat), requests(**sample)
    alone = [said(engine, [one])[0] for one in asked]
    assert len({tuple(tokens) for tokens in alone}) > 1
    assert said(engine, asked) == alone
    assert said(engine, asked[::-1]) == alone[::-1]
    crowd = asked * (INT8_SLOTS // len(asked) + 1)  # more than there are slots
    assert said(engine, crowd) == alone * (INT8_SLOTS // len(asked) + 1)


@torch.no_grad()
def test_logits_are_those_of_transformers_layers(tuned, chat):
    """Both multiply by the same int8 weights; their element-wise work differs in the last bits of bfloat16."""
    engine = TorchEngine(tuned, chat)
    found = []
    for layers in (_packed_layers(engine._model), engine._model_layers):
        cache = RowCache(engine._depth, INT8_SLOTS)
        row, prompt_V = engine._read_prompt(0, requests()[0], cache, 5, layers)
        row.said.append(70)
        rows = [None] * INT8_SLOTS
        rows[5] = row
        found.append((prompt_V, engine._step(rows, cache, layers)[5]))
    for one, other in zip(*found, strict=True):
        assert packs.distance(one.float(), other.float()) < 0.03
    assert packs.distance(found[0][0].float(), found[0][1].float()) > 0.3  # the two positions differ far more


@torch.no_grad()
@pytest.mark.skipif(not rows_apart(), reason="no compiler: torch computes all rows together")
def test_a_row_is_the_same_bits_in_any_company(tuned, chat):
    """Alone, beside one other, and with all slots in use: logits of a step, to the last bit."""
    engine, found = TorchEngine(tuned, chat), []
    for others in (0, 1, INT8_SLOTS - 1):
        cache, layers = RowCache(engine._depth, INT8_SLOTS), _packed_layers(engine._model)
        rows = [None] * INT8_SLOTS
        for slot in range(others + 1):
            row, _logits_V = engine._read_prompt(slot, requests()[slot % 5], cache, slot, layers)
            row.said.append(70 + slot)
            rows[slot] = row
        found.append([engine._step(rows, cache, layers)[0] for _ in range(3)])
        assert len(cache.present) == others + 1
    for company in found[1:]:
        for one, alone in zip(company, found[0], strict=True):
            assert torch.equal(one, alone)


def test_with_the_adapter_off_the_base_speaks(tuned, tiny_dir, chat):
    engine = TorchEngine(tuned, chat)
    with_adapter = said(engine, requests())
    with base_only(tuned):
        without = said(engine, requests())
    bare = load_base(ModelOptions(model_name=str(tiny_dir), dtype="int8"))
    assert without == said(TorchEngine(bare.model, chat), requests())
    assert without != with_adapter
    assert said(engine, requests()) == with_adapter


def test_what_the_fast_engine_can_not_compute_answers_all_the_same(loaded, chat):
    loaded.model.config.rope_parameters["rope_type"] = "linear"  # in name only: the numbers stay
    engine = TorchEngine(loaded.model, chat)
    assert not engine._fast
    assert all(said(engine, requests()[:2]))

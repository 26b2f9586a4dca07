"""Real weights: what holds for tiny models holds for a model that people use."""

import pytest
import torch

import tiny
from znatok.config import ModelOptions, SampleOptions
from znatok.generate.engine import Request
from znatok.generate.torch_engine import TorchEngine
from znatok.model.load import load_base
from znatok.tokens.chat import choose_format, dialogue

pytestmark = pytest.mark.real("smollm2-135m-instruct")
NAME = "smollm2-135m-instruct"
QUESTIONS = [
    "What is PLA?",
    "Что такое сопло 3D-принтера?",
    "Write one sentence about nozzles. " * 8,
    *(question for question, _answer in tiny.PAIRS[:7]),
]


def opened(dtype):
    loaded = load_base(ModelOptions(model_name=NAME, dtype=dtype))
    return loaded, choose_format(loaded.tokenizer, loaded.model.get_input_embeddings().weight)


def requests(count, **sample):
    options = SampleOptions(**({"temperature": 0, "max_new_tokens": 16} | sample))
    return [Request(tuple(dialogue(q, "You help.")), options, seed) for seed, q in enumerate(QUESTIONS[:count])]


@pytest.fixture(scope="module")
def default():
    """The model in this machine's own number format."""
    loaded, chat = opened("auto")
    return TorchEngine(loaded.model, chat), chat


def test_a_trained_end_token_is_seen(default):
    _engine, chat = default
    assert chat.name == "chatml"
    assert chat.tokenizer.decode([chat.end_id]) == "<|im_end|>"


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_text_is_the_same_alone_and_in_a_batch(default, temperature):
    engine, _chat = default
    asked = requests(10, temperature=temperature, max_new_tokens=16)
    together = [answer.text for answer in engine.answers(asked)]
    assert [engine.answers([one])[0].text for one in asked] == together


def test_greedy_answers_are_transformers_own_in_float32():
    loaded, chat = opened("float32")
    engine = TorchEngine(loaded.model, chat)
    for request in requests(2):
        ids = torch.tensor([chat.prompt_ids(request.messages)])
        wanted = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=sorted(chat.stop_ids),
            pad_token_id=0,
            suppress_tokens=engine._banned_V.nonzero()[:, 0].tolist(),
        )[0, ids.shape[1] :].tolist()
        assert [token for _index, token, _stop in engine.tokens([request])] == wanted

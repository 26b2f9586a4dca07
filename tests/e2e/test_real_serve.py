"""Served real weights say what the chat says: SmolLM2-135M-Instruct with an adapter, both engines, many at once."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch

import llama_files
from serving import open_service, served
from znatok.config import LoraOptions, ModelOptions, SampleOptions
from znatok.expert import open_expert
from znatok.generate.engine import Request
from znatok.model.adapters import inject, save_adapter
from znatok.model.load import int8_obstacle, load_base, resolve
from znatok.runs import Run
from znatok.tokens.chat import dialogue

MODEL = "smollm2-135m-instruct"
QUESTIONS = ("What is a nozzle?", "Name two plastics.", "Why does a print warp?", "What does a slicer do?")
SYSTEM = "Answer briefly."

pytestmark = [
    pytest.mark.real("smollm2-135m-instruct"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with one run: an adapter with a small random B."""
    folder = tmp_path_factory.mktemp("real") / "runs"
    model = inject(load_base(ModelOptions(model_name=MODEL, dtype="bfloat16")).model, LoraOptions(), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01, generator=generator)
    save_adapter(model, folder / "mine", MODEL)
    return folder


@pytest.mark.parametrize("engine", ["torch", pytest.param("llamacpp", marks=llama_files.needs_llama)])
def test_a_served_real_model_says_what_the_chat_says(runs, engine):
    dtype = "auto"
    if engine == "torch":
        if int8_obstacle(resolve(MODEL, say=print)):
            pytest.skip("this processor does not compute in int8")
        dtype = "int8"
    orders = [
        {"model": model, "seed": seed, "temperature": 0.8 * (seed % 2), "messages": [
            {"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]}
        for model in (MODEL, "mine") for seed, question in enumerate(QUESTIONS)
    ]  # fmt: skip
    service = open_service(MODEL, runs, engine=engine, dtype=dtype, context=1024, timeout=300.0)
    with (
        served(service) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="x") as client,
        ThreadPoolExecutor(len(orders)) as pool,
    ):
        answers = list(pool.map(lambda order: client.chat.completions.create(**order, max_tokens=24), orders))
    texts = [answer.choices[0].message.content for answer in answers]
    expert = open_expert(ModelOptions(model_name=MODEL, dtype=dtype), Run(runs / "mine"), "", engine)
    for voice, said in zip(expert.voices, (texts[:4], texts[4:]), strict=True):
        with expert.speaking(voice) as speaker:
            for seed, (question, text) in enumerate(zip(QUESTIONS, said, strict=True)):
                sample = SampleOptions(temperature=0.8 * (seed % 2), max_new_tokens=24)
                request = Request(tuple(dialogue(question, SYSTEM)), sample, seed)
                assert "".join(speaker.stream(request)) == text != ""
    expert.close()
    assert texts[:4] != texts[4:]

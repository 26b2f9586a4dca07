"""Real files: what transformers' own GGUF path gives, faster; and text as the publishers' tokenizers cut it."""

import gguf as reference
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES
from transformers import AutoModelForCausalLM, AutoTokenizer

from znatok.model import catalogue, dequant, gguf
from znatok.model.gguf_header import read_header

pytestmark = pytest.mark.real("smollm2-135m-instruct")
NAME = "smollm2-135m-instruct"
TEXTS = (
    "Hello world! What is 3D printing?",
    "Что такое 3D-печать? Ёлка, объём — 1,75 мм.",
    "a  b\n\n\tc <|im_start|>user\nhi<|im_end|>\n",
    "日本語 🙂 naïve café",
)


@pytest.fixture(scope="module")
def path():
    return catalogue.get(NAME)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def pair(request, path):
    """Return our model and transformers' in the same dtype, and our tokenizer."""
    ours = gguf.load_gguf(path, request.param)
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=request.param)
    return ours, theirs.eval()


def test_logits_equal_those_of_transformers(pair):
    ours, theirs = pair
    ids = ours.tokenizer("The capital of France is Paris. 3D printing is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        got, want = ours.model(ids).logits.float(), theirs(ids).logits.float()
    tolerance = 1e-4 if ours.model.dtype == torch.float32 else 0.25
    assert (got - want).abs().max() < tolerance
    assert torch.equal(got[0, -1].argmax(), want[0, -1].argmax())


def test_weights_equal_those_of_the_reference_dequantiser(path):
    model = gguf.load_gguf(path, torch.float32).model.state_dict()
    names = gguf.tensor_names("llama", 30)
    for tensor in reference.GGUFReader(path).tensors[:24]:
        want = torch.from_numpy(reference.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        heads = 9 if "attn_q." in tensor.name else 3 if "attn_k." in tensor.name else 0
        assert torch.equal(model[names[tensor.name]], gguf.unpermute(want, heads) if heads else want), tensor.name


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_equal_those_of_transformers(path, text):
    ours = gguf.load_gguf(path, torch.bfloat16).tokenizer
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers forgets that SmolLM splits numbers into digits; where there are none, all ids agree
    without_digits = "".join(letter for letter in text if not letter.isdigit())
    assert ours(without_digits)["input_ids"] == theirs(without_digits)["input_ids"]
    assert ours.decode(ours(text)["input_ids"]) == text


def test_the_chat_ends_where_the_model_ends_it(path):
    loaded = gguf.load_gguf(path, torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    inputs = loaded.tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        output = loaded.model.generate(**inputs, max_new_tokens=30, do_sample=False)[0]
    assert "Paris" in loaded.tokenizer.decode(output[inputs["input_ids"].shape[1] :])
    assert output[-1] == loaded.tokenizer.eos_token_id


@pytest.mark.parametrize("entry", catalogue.entries(), ids=lambda entry: entry.name)
def test_real_blocks_give_the_bits_of_the_reference(entry):
    if not entry.path.is_file():
        pytest.skip("not in the cache")
    header, kinds = read_header(entry.path), {}
    for tensor in header.tensors.values():
        kinds.setdefault(tensor.kind, tensor)
    for kind, tensor in kinds.items():
        size = GGML_QUANT_SIZES[kind][1]
        raw = np.fromfile(entry.path, np.uint8, count=min(tensor.nbytes, 500 * size), offset=tensor.start)
        want = reference.quants.dequantize(raw.reshape(1, -1), kind).reshape(-1)
        got = dequant.dequantise(torch.from_numpy(raw.reshape(-1, size)), kind).reshape(-1).numpy()
        assert np.array_equal(got.view(np.uint32), want.view(np.uint32)), (entry.name, kind.name)

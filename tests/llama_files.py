"""A tiny base as a GGUF file, adapters of every kind for it, and both engines on them."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModelForCausalLM, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

import gguf_files
from znatok.config import SampleOptions
from znatok.generate import llamacpp
from znatok.generate.choose import file_format, gguf_base
from znatok.generate.engine import Request, sayable
from znatok.generate.sampling import draw
from znatok.model.adapters import TARGETS, save_adapter
from znatok.model.gguf import load_gguf
from znatok.tokens.chat import dialogue

PRE = {"qwen2": "qwen2", "llama": "smollm", "gemma3": "qwen2"}
CONTEXT = 128
needs_llama = pytest.mark.skipif(not llamacpp.installed(), reason="the extra [llamacpp] is not installed")


def write_base(folder, architecture="qwen2", **changes):
    """Write a tiny base; return its path."""
    if architecture == "gemma3":
        changes = {"vocab_size": len(gguf_files.sentence_tokens()), **changes}
    folder.mkdir(parents=True, exist_ok=True)
    source = gguf_files.model(architecture, **changes)
    return gguf_files.write(folder / f"{architecture}.gguf", source, pre=PRE[architecture])


def loaded(path):
    """Return the base in torch, float32."""
    return load_gguf(path, torch.float32)


def write_adapter(folder, base, seed=0, size=0.3, **options):
    """Write a PEFT adapter with random A and B for the base at a path; return its folder."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(TARGETS), "task_type": "CAUSAL_LM"} | options
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT 0.21 reads a property transformers 5.23 has renamed; goes with the filter in znatok.model.adapters
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.manual_seed(seed)
        model = get_peft_model(loaded(base).model, LoraConfig(**settings))
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.lora_B["default"].weight.data.normal_(std=size)
    assert isinstance(model, PeftModelForCausalLM)
    save_adapter(model, folder, "tiny")
    return folder


def spoil(folder, **config):
    """Change an adapter's config."""
    path = Path(folder) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def change_weights(folder, change):
    """Change an adapter's tensors with a function of the whole dict."""
    path = Path(folder) / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors) or tensors, path, metadata={"format": "pt"})
    return folder


def opened(path, adapter=None, context=CONTEXT):
    """Return a server and its two voices; the tuned one is None without an adapter."""
    base = gguf_base(str(path), print)
    chat = file_format(base, "auto")
    server = llamacpp.LlamaServer(Path(path), [adapter] if adapter else [], context)
    banned = sorted(set(range(len(base.header.metadata["tokenizer.ggml.tokens"]))) - sayable(chat))
    voices = [llamacpp.LlamaCppEngine(server, chat, context, banned, adapter=place) for place in (None, 0)]
    return server, voices[0], voices[1] if adapter else None


def request(question="12 the", seed=42, system="", **sample):
    """Return a request, greedy and short unless told otherwise."""
    options = {"temperature": 0.0, "max_new_tokens": 16} | sample
    return Request(tuple(dialogue(question, system)), SampleOptions(**options), seed)


def said(engine, *requests):
    """Return the tokens of each answer."""
    found = [[] for _ in requests]
    for index, token, _stop in engine.tokens(requests):
        found[index].append(token)
    return found


@torch.no_grad()
def shortfalls(engine, asked, tokens):
    """Return by how much torch's score of each token a greedy answer said stays behind torch's best one.

    0 where both say the same. Keys and values are float16 in llama.cpp, so near ties may go the other way.
    """
    ids = engine._chat.prompt_ids(asked.messages)
    logits_TV = engine._model(input_ids=torch.tensor([ids + tokens[:-1]])).logits[0, len(ids) - 1 :].float()
    found = []
    for place, token in enumerate(tokens):
        scores_V = logits_TV[place].masked_fill(engine._banned_V, -torch.inf)
        draw(scores_V, asked.sample, tokens[:place], torch.Generator())  # applies the repetition penalty in place
        found.append(float(scores_V.max() - scores_V[token]))
    return found


def logprobs(server, ids, *, tuned=None, count=20):
    """Return llama.cpp's {token: log-probability} of the likeliest tokens after ``ids``."""
    order = {"prompt": ids, "n_predict": 1, "verbose": True, "return_tokens": True, "cache_prompt": False}
    # the token said must be a whole character, or llama.cpp tells no probabilities; they are taken before the bias
    order |= {"samplers": ["top_k"], "top_k": 1, "n_probs": count, "logit_bias": [[40, 1000.0]]}
    if tuned is not None:
        order["lora"] = [{"id": 0, "scale": float(tuned)}]
    (found,) = server.ask(order, server.begin())["logprobs"]["content"]
    return {row["id"]: row["logprob"] for row in found["top_logprobs"]}

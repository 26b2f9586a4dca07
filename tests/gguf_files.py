"""Tiny GGUF files of the three architectures, written the way llama.cpp's converter writes real ones."""

import warnings

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from znatok.model.gguf import permute
from znatok.model.gguf_names import tensor_names

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PLAIN = {"<tool_call>": 4}
MERGES = ["Ð ¿", "Ð ¸", "Ġ Ð", "1 2", "t h", "th e"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def model(architecture, seed=0, **changes):
    """Return a random model: 2 layers, width 32, 4 heads of 8, 2 key heads, 320 tokens."""
    shape = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    kinds = {
        "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
        "llama": (LlamaForCausalLM, LlamaConfig, {"head_dim": 8}),
        "gemma3": (
            Gemma3ForCausalLM,
            Gemma3TextConfig,
            {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4},
        ),
    }
    kind, config, more = kinds[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = kind(config(**(shape | more | changes)))
        for parameter in built.parameters():  # biases and norms start at 0 or 1, which would hide mistakes
            torch.nn.init.normal_(parameter, std=0.3)
    return built.eval()


def byte_tokens():
    """Return a byte-level vocabulary: control tokens, the alphabet, the merges, one plain added token."""
    merged = [merge.replace(" ", "") for merge in MERGES]
    return [*CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *merged, *PLAIN]


def sentence_tokens():
    """Return a SentencePiece vocabulary: specials, byte fallback, pieces."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    pieces = ["▁", "  ", "а", "б", "в", "аб", "▁а", "▁аб", "абв"]
    return [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]


def write(path, source, *, pre="qwen2", kind="F32", alignment=None, head=None, metadata=None, drop=()):
    """Write ``source`` with a tokenizer; ``head`` adds an output.weight, ``metadata`` overrides values."""
    architecture = {"gemma3_text": "gemma3"}.get(source.config.model_type, source.config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    if alignment:
        writer.add_custom_alignment(alignment)
    config = source.config
    rope = config.rope_parameters
    values = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]),
    }
    if architecture == "gemma3":
        values |= {"attention.key_length": 8, "attention.value_length": 8, "attention.sliding_window": 4}
    values = {f"{architecture}.{key}": value for key, value in values.items()}
    values |= tokenizer_values(architecture, pre)
    for key, value in (values | (metadata or {})).items():
        add(writer, key, value)
    state = dict(source.state_dict())
    state.pop("lm_head.weight", None)
    if head is not None:
        state["lm_head.weight"] = head
    ours = {hf: name for name, hf in tensor_names(architecture, config.num_hidden_layers).items()}
    for hf, tensor in state.items():
        name = ours[hf]
        if name not in drop:
            add_tensor(writer, name, converted(architecture, name, tensor, config), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(architecture, name, tensor, config):
    """Do what llama.cpp's converter does to this tensor."""
    if architecture == "llama" and "attn_q" in name:
        tensor = permute(tensor, config.num_attention_heads)
    if architecture == "llama" and "attn_k" in name:
        tensor = permute(tensor, config.num_key_value_heads)
    if architecture == "gemma3" and name.endswith("norm.weight"):
        tensor = tensor + 1
    return tensor.detach().float().numpy()


def add_tensor(writer, name, values, kind):
    quant = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy, on blocks of zeros
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), quant), raw_dtype=quant)


def add(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def tokenizer_values(architecture, pre):
    if architecture == "gemma3":
        tokens = sentence_tokens()
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [float(-n) for n in range(len(tokens))],
            "tokenizer.ggml.token_type": [3, 3, 3, 2] + [6] * 256 + [1] * (len(tokens) - 260),
            "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 3,
            "tokenizer.ggml.padding_token_id": 0,
            "tokenizer.ggml.add_bos_token": True,
        }
    tokens = byte_tokens()
    pad = [f"[PAD{n}]" for n in range(len(tokens), 320)]
    types = [3 if t in CONTROL else PLAIN.get(t, 1) for t in tokens] + [5] * len(pad)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens + pad,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }

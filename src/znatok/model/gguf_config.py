"""A transformers config from GGUF metadata, for the three architectures znatok reads."""

from typing import Any

from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from znatok.errors import ModelError, _
from znatok.model.gguf_header import Header
from znatok.model.gguf_names import ARCHITECTURES

MODELS = {"qwen2": Qwen2ForCausalLM, "llama": LlamaForCausalLM, "gemma3": Gemma3ForCausalLM}
CONFIGS = {"qwen2": Qwen2Config, "llama": LlamaConfig, "gemma3": Gemma3TextConfig}
GEMMA_WINDOW_PATTERN = 6  # every sixth layer attends to everything; metadata rarely says so
GEMMA_LOCAL_THETA = 10_000.0


def architecture_of(header: Header) -> str:
    """Return the architecture's GGUF name; ModelError for one znatok can't read."""
    name = header.text("general.architecture")
    if name not in ARCHITECTURES:
        raise ModelError(
            "{path}: architecture {name}; expected one of {known}",
            path=header.path,
            name=repr(name)[1:40].rstrip("'"),
            known=", ".join(ARCHITECTURES),
        )
    return name


def build(header: Header, *, tied: bool) -> PreTrainedConfig:
    """Return the config; every number is checked, so that building the model can neither fail nor explode."""
    name = architecture_of(header)
    shapes = {key: tensor.shape for key, tensor in header.tensors.items()}
    for needed in ("token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight"):
        if needed not in shapes:
            raise ModelError("{path}: the tensor {name} is missing; get the file anew", path=header.path, name=needed)
    heads = header.integer(f"{name}.attention.head_count", high=4096)
    hidden = header.integer(f"{name}.embedding_length", high=1 << 20)
    if hidden % heads:
        raise header.bad(f"{name}.attention.head_count", heads, _("a divisor of {number}", number=hidden))
    kv_heads = header.integer(f"{name}.attention.head_count_kv", heads, high=heads)
    if heads % kv_heads:
        raise header.bad(f"{name}.attention.head_count_kv", kv_heads, _("a divisor of {number}", number=heads))
    head_dim = _head_dim(header, name, hidden // heads)
    common: dict[str, Any] = {
        "architectures": [MODELS[name].__name__],
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": hidden,
        "intermediate_size": header.integer(f"{name}.feed_forward_length", high=1 << 22),
        # each layer has at least nine tensors, so a forged count can't make the model bigger than the file
        "num_hidden_layers": header.integer(f"{name}.block_count", high=max(1, len(shapes) // 9)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": header.integer(f"{name}.context_length", high=1 << 24),
        "rms_norm_eps": header.number(f"{name}.attention.layer_norm_rms_epsilon", low=1e-12, high=1e-1),
        "tie_word_embeddings": tied,
        **token_ids(header),
    }
    _refuse_giants(header, common, head_dim)
    return CONFIGS[name](**common, **_own(header, name, head_dim))


def _head_dim(header: Header, name: str, default: int) -> int:
    size = header.integer(f"{name}.attention.key_length", default, high=1 << 16)
    rotary = header.integer(f"{name}.rope.dimension_count", size, high=1 << 16)
    values = header.integer(f"{name}.attention.value_length", size, high=1 << 16)
    if size % 2 or rotary != size or values != size or (name == "qwen2" and size != default):
        raise header.bad(
            f"{name}.attention.key_length", [size, rotary, values], _("one even number for key, value and rotary")
        )
    return size


def _refuse_giants(header: Header, config: dict[str, Any], head_dim: int) -> None:
    """The projections' true shapes are in the file: compare before a forged number becomes an allocation."""
    shapes = {key: tensor.shape for key, tensor in header.tensors.items()}
    promised = (config["num_attention_heads"] * head_dim, config["hidden_size"])
    for key, expected in (
        ("blk.0.attn_q.weight", promised),
        ("token_embd.weight", (config["vocab_size"], config["hidden_size"])),
    ):
        if shapes[key] != expected:
            raise ModelError(
                "{path}: the tensor {name} has the shape {found}, its metadata promise {expected}; get the file anew",
                path=header.path,
                name=key,
                found=list(shapes[key]),
                expected=list(expected),
            )


def _own(header: Header, name: str, head_dim: int) -> dict[str, Any]:
    """The settings that differ between the architectures."""
    rope = _rope(header, name)
    if name == "qwen2":
        return {"rope_parameters": rope}
    if name == "llama":
        return {"rope_parameters": rope, "head_dim": head_dim}
    local = header.number("gemma3.rope.freq_base_swa", GEMMA_LOCAL_THETA, low=1.0, high=1e12)
    pattern = header.integer("gemma3.attention.sliding_window_pattern", GEMMA_WINDOW_PATTERN, high=1 << 10)
    layers = header.integer("gemma3.block_count", high=1 << 16)
    kinds = ["full_attention" if (number + 1) % pattern == 0 else "sliding_attention" for number in range(layers)]
    return {
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "sliding_window": header.integer("gemma3.attention.sliding_window", high=1 << 24),
        "layer_types": kinds,
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }


def _rope(header: Header, name: str) -> dict[str, Any]:
    theta = header.number(f"{name}.rope.freq_base", 10_000.0, low=1.0, high=1e12)
    scaling = header.text(f"{name}.rope.scaling.type", "none")
    if scaling == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if scaling == "linear":
        factor = header.number(f"{name}.rope.scaling.factor", low=1.0, high=1e6)
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    raise header.bad(f"{name}.rope.scaling.type", scaling, "none, linear")


def token_ids(header: Header) -> dict[str, Any]:
    """Return bos_token_id, eos_token_id (all ids that end a turn) and pad_token_id, those the file states."""
    embedding = header.tensors.get("token_embd.weight")
    last = embedding.shape[0] - 1 if embedding else 0
    ids = {
        key: header.integer(f"tokenizer.ggml.{key}_token_id", low=0, high=last)
        for key in ("bos", "eos", "eot", "eom", "padding")
        if f"tokenizer.ggml.{key}_token_id" in header.metadata
    }
    ends = list(dict.fromkeys(ids[key] for key in ("eos", "eot", "eom") if key in ids))
    found = {"bos_token_id": ids.get("bos"), "pad_token_id": ids.get("padding")}
    return {**found, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}


def permuted_heads(header: Header, tensor_name: str) -> int:
    """Return the number of heads whose rows llama.cpp has interleaved in this tensor, 0 for none."""
    if architecture_of(header) != "llama":
        return 0
    heads = header.integer("llama.attention.head_count")
    if tensor_name.endswith(".attn_q.weight"):
        return heads
    return header.integer("llama.attention.head_count_kv", heads) if tensor_name.endswith(".attn_k.weight") else 0


def shift(header: Header, tensor_name: str) -> float:
    """Return what to add to a tensor's values: Gemma's norms multiply by 1 + weight and are stored as the sum."""
    return -1.0 if architecture_of(header) == "gemma3" and tensor_name.endswith("norm.weight") else 0.0

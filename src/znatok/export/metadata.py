"""What a GGUF file says of a model besides its tensors: copied from another GGUF file, or made from a directory's."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from gguf.gguf_reader import GGUFReader

from znatok.errors import UsageError

Type = gguf.GGUFValueType
OWN = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture", "general.quantization_version")
"""Fields that belong to one file and are written anew."""
BYTE_LEVEL = "ByteLevel"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's types of tokens
SPLITS = {
    "qwen2": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^",
    "llama-bpe": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^",
}
"""By what part of its pattern a way to split text is known; llama.cpp knows them by name only."""


@dataclass(frozen=True, slots=True)
class Field:
    """One entry: its key, value and type (:data:`Type`); ``of`` is the type of an array's elements."""

    key: str
    value: Any
    kind: Any
    of: Any = None


def metadata_of_file(path: Path) -> list[Field]:
    """Return the entries of a GGUF file, types as they stand there."""
    reader = GGUFReader(path)
    fields = []
    for key, field in reader.fields.items():
        if key not in OWN:
            of = field.types[-1] if field.types[0] is Type.ARRAY else None
            fields.append(Field(key, field.contents(), field.types[0], of))
    return fields


def metadata_of_directory(config: Any, tokenizer: Any, architecture: str) -> list[Field]:
    """Return the entries for a model that came as a directory.

    Args:
        config: transformers' config.
        tokenizer: transformers' fast tokenizer.
        architecture: ``qwen2`` or ``llama``.

    Raises:
        UsageError: the architecture or the tokenizer is of a kind that is not written.
    """
    if architecture not in {"qwen2", "llama"}:
        raise UsageError(
            "--to gguf: a {name} model that came as a directory can't be written; take --to merged", name=architecture
        )
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise UsageError(
            "--to gguf: rotary embeddings of type {name} can't be written; take --to merged", name=rope["rope_type"]
        )
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.dimension_count": head,
        "vocab_size": config.vocab_size,
    }
    if architecture == "llama":
        numbers |= {"attention.key_length": head, "attention.value_length": head}
    floats = {"attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.freq_base": rope["rope_theta"]}
    return [
        Field("general.type", "model", Type.STRING),
        *(Field(f"{architecture}.{key}", int(value), Type.UINT32) for key, value in numbers.items()),
        *(Field(f"{architecture}.{key}", float(value), Type.FLOAT32) for key, value in floats.items()),
        *_tokenizer(tokenizer, config.vocab_size),
    ]


def _tokenizer(tokenizer: Any, rows: int) -> list[Field]:
    """Return the entries of a byte-level BPE tokenizer, padded to the rows of the embedding."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    model = whole["model"]
    if model["type"] != "BPE" or BYTE_LEVEL not in json.dumps(whole.get("decoder") or {}):
        raise UsageError("--to gguf: only byte-level BPE tokenizers can be written; take --to merged")
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {entry["id"]: CONTROL if entry["special"] else USER_DEFINED for entry in whole.get("added_tokens", [])}
    tokens = [names.get(number, f"[PAD{number}]") for number in range(rows)]
    kinds = [added.get(number, NORMAL if number in names else UNUSED) for number in range(rows)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    fields = [
        Field("tokenizer.ggml.model", "gpt2", Type.STRING),
        Field("tokenizer.ggml.pre", _pre(whole), Type.STRING),
        Field("tokenizer.ggml.tokens", tokens, Type.ARRAY, Type.STRING),
        Field("tokenizer.ggml.token_type", kinds, Type.ARRAY, Type.INT32),
        Field("tokenizer.ggml.merges", merges, Type.ARRAY, Type.STRING),
        Field("tokenizer.ggml.add_bos_token", False, Type.BOOL),  # our chat format writes one where it belongs
    ]
    for key, number in (("bos", tokenizer.bos_token_id), ("padding", tokenizer.pad_token_id)):
        if number is not None:
            fields.append(Field(f"tokenizer.ggml.{key}_token_id", int(number), Type.UINT32))
    return fields


def _pre(whole: dict[str, Any]) -> str:
    """Return llama.cpp's name of the way a tokenizer splits text before it merges."""
    steps = whole.get("pre_tokenizer") or {}
    parts = steps.get("pretokenizers", [steps])
    kinds = [part.get("type") for part in parts]
    if kinds == ["Split", "ByteLevel"]:
        pattern = str(parts[0].get("pattern", {}).get("Regex", ""))
        for name, piece in SPLITS.items():
            if piece in pattern:
                return name
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["ByteLevel"] and parts[0].get("use_regex"):
        return "gpt-2"
    raise UsageError(
        "--to gguf: the tokenizer splits text in a way that llama.cpp has no known name for; take --to merged"
    )

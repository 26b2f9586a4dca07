"""A model directory in the hub's layout: what is checked before transformers sees it.

Accepted are plain float weights in safetensors, of the architectures znatok knows, without code of their own. The heads
of the weight files are read here (8 bytes of length, JSON, data), so a truncated or lengthened file is named with its
sizes, and a config can't promise more layers than there are weights for.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Gemma3ForCausalLM, LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from znatok.errors import ModelError

ARCHITECTURES: dict[str, type[PreTrainedModel]] = {
    "Qwen2ForCausalLM": Qwen2ForCausalLM,
    "LlamaForCausalLM": LlamaForCausalLM,
    "Gemma3ForCausalLM": Gemma3ForCausalLM,
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_JSON = 64 << 20  # bytes; a big tokenizer.json has 35 MB
MAX_HEADER = 100 << 20  # the safetensors library's own limit
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class ModelDirectory:
    """A directory that passed the checks."""

    path: Path
    architecture: str
    config: dict[str, Any]
    weights: list[Path]


def check_directory(path: Path) -> ModelDirectory:
    """Check a model directory; ModelError for anything znatok must not or can't load."""
    config, architecture = check_config(path)
    weights = weight_files(path)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weights:
        shapes |= safetensors_shapes(file)
    _compare(path, config, shapes)
    return ModelDirectory(path, architecture, config, weights)


def check_config(path: Path) -> tuple[dict[str, Any], str]:
    """Read ``config.json``; refuse adapters, code of its own, quantised weights and unknown architectures."""
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise ModelError(
                "{path}: an adapter, not a model; name its base model here and give the adapter as --model_dir",
                path=path,
            )
        raise ModelError("{path}: no config.json; expected a model directory in the hub's layout", path=path)
    if (path / "adapter_config.json").is_file():  # transformers would attach it without a word
        raise ModelError("{path}: model and adapter in one directory; move adapter_config.json out", path=path)
    config = read_json(path / "config.json")
    tokenizer = path / "tokenizer_config.json"
    for name, table in (("config.json", config), ("tokenizer_config.json", read_json(tokenizer))):
        if "auto_map" in table:
            raise ModelError(
                "{path}: {name} asks to run code from the model (auto_map); znatok never does;"
                " take a model of a standard architecture",
                path=path,
                name=name,
            )
    if "quantization_config" in config:
        raise ModelError(
            "{path}: quantised weights; expected float weights in safetensors, or a .gguf file instead", path=path
        )
    stated = config.get("architectures")
    architecture = stated[0] if isinstance(stated, list) and len(stated) == 1 else None
    if architecture not in ARCHITECTURES:
        raise ModelError(
            "{path}: architecture {found}; expected one of {known}",
            path=path,
            found=str(stated)[:80],
            known=", ".join(ARCHITECTURES),
        )
    return config, architecture


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files; ModelError where there are only pickles or nothing."""
    found = sorted(path.glob("*.safetensors"))
    if found:
        return found
    pickles = [file.name for file in sorted(path.iterdir()) if file.suffix in PICKLES]
    if pickles:
        raise ModelError(
            "{path}: its weights are pickles ({name}), which can run code; expected *.safetensors;"
            " the hub converts: https://huggingface.co/spaces/safetensors/convert",
            path=path,
            name=pickles[0],
        )
    raise ModelError("{path}: no weights; expected *.safetensors", path=path)


def safetensors_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} from a safetensors file whose header and size agree; ModelError otherwise."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 10 or length > min(MAX_HEADER, size - 8):
                raise damaged(file, size, f"> {min(length, MAX_HEADER) + 8}")
            table = json.loads(stream.read(length))
        entries = {name: entry for name, entry in table.items() if name != "__metadata__"}
        shapes, end = {}, 0
        for name, entry in sorted(entries.items(), key=lambda pair: pair[1]["data_offsets"]):
            shapes[name] = tuple(int(n) for n in entry["shape"])
            first, last = entry["data_offsets"]
            if first != end or last - first != math.prod(shapes[name]) * ITEM_BYTES.get(entry["dtype"], 1):
                raise damaged(file, size, "?")
            end = last
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        if isinstance(error, ModelError):
            raise
        raise damaged(file, size, "?") from error
    if size != 8 + length + end:
        raise damaged(file, size, 8 + length + end)
    return shapes


def damaged(file: Path, size: int, expected: object) -> ModelError:
    """Return the error for a weight file whose content contradicts its header."""
    return ModelError(
        "{path}: damaged: {size} bytes, its header promises {expected}; get the file anew",
        path=file,
        size=size,
        expected=expected,
    )


def _compare(path: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """The sizes in the config must be those of the weights, before a model of that size is built."""
    layers = {name.split(".")[2] for name in shapes if name.startswith("model.layers.")}
    embedding = shapes.get("model.embed_tokens.weight", (0, 0))
    gate = shapes.get("model.layers.0.mlp.gate_proj.weight", (0, 0))
    query = shapes.get("model.layers.0.self_attn.q_proj.weight", (0, 0))
    true = {
        "num_hidden_layers": len(layers),
        "vocab_size": embedding[0],
        "hidden_size": embedding[-1],
        "intermediate_size": gate[0],
    }
    for key, value in true.items():
        if config.get(key) != value:
            raise ModelError(
                "{path}: config.json says {key} {stated}, its weights {value}; get the model anew",
                path=path,
                key=key,
                stated=config.get(key),
                value=value,
            )
    heads, head_dim = config.get("num_attention_heads"), config.get("head_dim")
    if not isinstance(heads, int) or heads < 1 or (isinstance(head_dim, int) and heads * head_dim != query[0]):
        raise ModelError(
            "{path}: config.json says {key} {stated}, its weights {value}; get the model anew",
            path=path,
            key="num_attention_heads",
            stated=heads,
            value=query[0],
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of somebody else's making; an absent file is an empty one."""
    try:
        if not path.exists():
            return {}
        if path.stat().st_size > MAX_JSON:
            raise ModelError("{path}: {size} bytes of JSON; expected a small file", path=path, size=path.stat().st_size)
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:  # a number of 5000 digits is a ValueError of its own
        raise ModelError("{path}: can't be read as JSON: {why}", path=path, why=error) from error
    if not isinstance(value, dict):
        raise ModelError("{path}: expected a JSON object", path=path)
    return value

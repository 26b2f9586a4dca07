"""Base and adapter as one GGUF file, which llama.cpp, Ollama and LM Studio run.

Where the base came from a GGUF file, its metadata are copied field by field, tokenizer included; for a directory they
are written anew from config and tokenizer. Tensors are made one at a time, so memory holds the model and one of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor

from znatok import files
from znatok.errors import UsageError
from znatok.expert import Expert
from znatok.export.formats import FORMATS, Place, as_stored, byte_count, refuse_missing, stored_kind
from znatok.export.merge import merged_tensors
from znatok.export.metadata import Field, metadata_of_directory, metadata_of_file
from znatok.model import gguf_config
from znatok.model.gguf import permute
from znatok.model.gguf_names import tensor_names
from znatok.model.gguf_writer import gguf_writer, loud

ARCHITECTURES = {kind.__name__: name for name, kind in gguf_config.MODELS.items()}


def write_gguf(expert: Expert, path: Path, quant: str) -> None:
    """Write the file, whole or not at all.

    Args:
        expert: in float32, with its adapter.
        path: the file.
        quant: a key of :data:`FORMATS`.

    Raises:
        UsageError: the base is of an architecture or has a tokenizer this can't write.
        SystemFault: the format needs a library that is not installed.
    """
    refuse_missing(quant)
    architecture = architecture_of(expert)
    with files.replacing(path) as temporary, gguf_writer(temporary, architecture) as writer:
        for field in metadata(expert, architecture, FORMATS[quant][1]):
            writer.add_key_value(field.key, field.value, field.kind, field.of)
        kinds = {}
        for name, shape, kind in layout(expert, architecture, quant):
            kinds[name] = kind
            writer.add_tensor_info(name, shape, np.dtype(np.float32), byte_count(shape, kind), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, values in arranged(expert, architecture):
            writer.write_tensor_data(loud(as_stored(values, kinds[name], name)))


def architecture_of(expert: Expert) -> str:
    """Return GGUF's name of the base's architecture."""
    found = type(expert.loaded.model).__name__
    if found not in ARCHITECTURES:
        raise UsageError("--to gguf: {name} has no place in a GGUF file znatok writes; take --to merged", name=found)
    return ARCHITECTURES[found]


def metadata(expert: Expert, architecture: str, file_type: gguf.LlamaFileType) -> list[Field]:
    """Return everything of the file that is no tensor, with the trained chat template and end token in it."""
    source = expert.loaded.source.path
    if source.is_file():
        fields = metadata_of_file(source)
    else:
        fields = metadata_of_directory(expert.loaded.model.config, expert.loaded.tokenizer, architecture)
    own = {
        "general.name": Field("general.name", f"{expert.loaded.source.base_name} + LoRA", gguf.GGUFValueType.STRING),
        "general.file_type": Field("general.file_type", int(file_type), gguf.GGUFValueType.UINT32),
        "tokenizer.chat_template": Field(
            "tokenizer.chat_template", expert.chat.jinja(expert.system), gguf.GGUFValueType.STRING
        ),
        "tokenizer.ggml.eos_token_id": Field(
            "tokenizer.ggml.eos_token_id", expert.chat.end_id, gguf.GGUFValueType.UINT32
        ),
    }
    return [*(field for field in fields if field.key not in own), *own.values()]


def layout(expert: Expert, architecture: str, quant: str) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Yield (name, shape, number format) of each tensor in the order of the file."""
    names = _gguf_names(expert, architecture)
    base: Any = expert.loaded.model
    tied, layers = base.config.tie_word_embeddings, base.config.num_hidden_layers
    head = "token_embd.weight" if tied else "output.weight"
    for hf, parameter in base.named_parameters():
        name = names.get(hf.replace(".base_layer.", "."))
        if name is not None and not (hf == "lm_head.weight" and tied):
            shape = tuple(parameter.shape)
            yield name, shape, stored_kind(Place(name, shape, layers, name == head), quant)


def arranged(expert: Expert, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, float32 values) of each tensor as llama.cpp wants them.

    The rows of llama's q and k are interleaved, Gemma's norms stored plus one.
    """
    names = _gguf_names(expert, architecture)
    config = expert.loaded.model.config
    heads = {"attn_q.weight": config.num_attention_heads, "attn_k.weight": config.num_key_value_heads}
    for hf, values in merged_tensors(expert):
        name = names[hf]
        leaf = name.split(".", 2)[-1]
        if architecture == "llama" and leaf in heads:
            values = permute(values, heads[leaf])
        if architecture == "gemma3" and name.endswith("norm.weight"):
            values = values + 1.0
        yield name, values


def _gguf_names(expert: Expert, architecture: str) -> dict[str, str]:
    layers = expert.loaded.model.config.num_hidden_layers
    return {hf: ours for ours, hf in tensor_names(architecture, layers).items()}


def file_bytes(expert: Expert, quant: str) -> int:
    """Return about how large the file will be."""
    architecture = architecture_of(expert)
    return sum(byte_count(shape, own) for _name, shape, own in layout(expert, architecture, quant))

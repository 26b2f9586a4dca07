"""Base and adapter as one set of weights: added up in float32, rounded once.

Adding in bfloat16 would round twice, and lose what is smaller than a 256th of a weight.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor

from znatok.errors import ModelError, UsageError
from znatok.expert import Expert
from znatok.files import write_json, write_text

SHARD = 2_000_000_000  # bytes of one file at most, unless a tensor is larger


def merged_tensors(expert: Expert) -> Iterator[tuple[str, Tensor]]:
    """Yield (transformers' name, float32 values) of every weight with the adapter added in; a tied head is left out.

    The expert's own weights stay as they are.

    Raises:
        ModelError: a value is no number, or the adapter changes one end of a model whose embedding is its head.
    """
    base: Any = expert.loaded.model
    adapters = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    tied = base.config.tie_word_embeddings
    if tied:
        _refuse_one_end(adapters)
    for name, parameter in base.named_parameters():
        if ".lora_" in name or (tied and name == "lm_head.weight"):
            continue
        owner, _dot, leaf = name.rpartition(".base_layer.")
        plain = f"{owner}.{leaf}" if owner else name
        values = parameter.detach().float()
        if owner and leaf == "weight":
            module: Any = adapters[owner]
            (adapter,) = module.active_adapters
            values = values + module.get_delta_weight(adapter).to(values)
        if not values.isfinite().all():
            raise ModelError("{name} holds NaN or infinity in base or adapter; get both anew", name=plain)
        yield plain, values


def _refuse_one_end(adapters: Iterable[str]) -> None:
    """Raise ModelError where an adapter changes one end of a model whose embedding is its head."""
    for name in adapters:
        if name in {"model.embed_tokens", "lm_head"}:
            raise ModelError(
                "the adapter changes {name}, which is embedding and head in one here: merged, it would change both;"
                " take --to card, or train without it",
                name=name,
            )


def save_merged(expert: Expert, folder: Path, dtype: str) -> None:
    """Write a model directory that transformers and vLLM load: weights, config, tokenizer, chat template.

    Args:
        expert: in float32, with its adapter.
        folder: an empty directory.
        dtype: of the weights, as torch calls it.

    Raises:
        ModelError: the adapter changes one end of a tied model.
        UsageError: a value is too large for that number format.
    """
    kind: torch.dtype = getattr(torch, dtype)
    shard: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    places: dict[str, int] = {}
    count = 0

    def flush() -> None:
        nonlocal count, shard
        if shard:
            count += 1
            save_file(shard, folder / f"{count}.part", metadata={"format": "pt"})
            shard = {}

    for name, values in merged_tensors(expert):
        rounded = values.to(kind).contiguous()
        if not rounded.isfinite().all():
            raise UsageError(
                "--merged_dtype {dtype}: {name} holds values too large for it; take bfloat16", dtype=dtype, name=name
            )
        size = rounded.numel() * rounded.element_size()
        if sum(tensor.numel() * tensor.element_size() for tensor in shard.values()) + size > SHARD:
            flush()
        shard[name], sizes[name], places[name] = rounded, size, count + 1
    flush()
    _name_shards(folder, count, sizes, places)
    config = expert.loaded.model.config.to_dict() | {"dtype": dtype, "_name_or_path": expert.loaded.source.base_name}
    write_json(folder / "config.json", _plain(config))
    generation = {"eos_token_id": sorted(expert.chat.stop_ids), "do_sample": False, "_from_model_config": False}
    write_json(folder / "generation_config.json", generation)
    tokenizer: Any = expert.loaded.tokenizer
    before = tokenizer.chat_template
    tokenizer.chat_template = expert.chat.jinja(expert.system)
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = before
    title = f"# {expert.loaded.source.base_name} + LoRA"
    write_text(folder / "README.md", f"{title}\n\nBase and adapter in one, made by znatok.\n")


def _name_shards(folder: Path, count: int, sizes: dict[str, int], places: dict[str, int]) -> None:
    """Give the files the names that loaders look for, and write their index where there are several."""
    if count == 1:
        (folder / "1.part").rename(folder / "model.safetensors")
        return
    names = {number: f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)}
    for number, name in names.items():
        (folder / f"{number}.part").rename(folder / name)
    weight_map = {name: names[place] for name, place in places.items()}
    total = {"total_size": sum(sizes.values())}
    write_json(folder / "model.safetensors.index.json", {"metadata": total, "weight_map": weight_map})


def _plain(value: Any) -> Any:
    """Return a config as JSON takes it."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value

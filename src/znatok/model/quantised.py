"""A base model with int8 projections, straight from its checkpoint: no float copy of the model is ever in memory.

Every projection is read, rotated and rounded on its own (``fast.linear`` has the formulas), and the result is kept as
one safetensors file in the user's cache, named after the checkpoint's hash, so that a second start only maps it into
memory. Everything that is not a projection (embedding, norms, biases) stays in the compute dtype.
"""

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from znatok.errors import ModelError, _
from znatok.fast.linear import FrozenLinear, Int8Weight, quantise_weight
from znatok.fast.loss import Int8Head
from znatok.fast.product import INT_MM, Way
from znatok.files import cache_home, prune, replacing
from znatok.model import directory, gguf, gguf_config
from znatok.model.gguf_header import read_header
from znatok.model.source import Source

RECIPE = "h64-head"  # changes whenever the same checkpoint would give other numbers
KEPT = 6  # rounded models: half as large as their checkpoints, and made anew in seconds to minutes
GROUPS = {
    "self_attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.out": ("self_attn.o_proj",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}
"""Projections that share an input, under the names of ``fast.block.Layer`` after the dot."""
Say = Callable[[str], object]


@dataclass(frozen=True)
class Checkpoint:
    """A model whose weights can be read one by one.

    Attributes:
        config: of transformers.
        kind: its class.
        read: (name, dtype) -> that weight.
        names: of all weights the model needs.
        generation: special token ids.
    """

    config: Any
    kind: type[PreTrainedModel]
    read: Callable[[str, torch.dtype], Tensor]
    names: tuple[str, ...]
    generation: GenerationConfig


def load_quantised(
    source: Source, dtype: torch.dtype, way: Way = INT_MM, *, say: Say = lambda _text: None
) -> tuple[PreTrainedModel, Int8Head]:
    """Return the model with int8 projections, frozen and in evaluation mode, and its head in int8.

    Args:
        source: the checkpoint; of Llama's family.
        dtype: of everything else.
        way: how this machine multiplies int8.
        say: hears that the checkpoint is being rounded for the first time.

    Raises:
        ModelError: the checkpoint is damaged.
    """
    checkpoint = open_checkpoint(source)
    weights = _cached(source, checkpoint, dtype, say)
    with torch.device("meta"):
        model = checkpoint.kind(checkpoint.config)
    _place_projections(model, weights, dtype, way)
    rest = {
        name: nn.Parameter(weight, requires_grad=False) for name, weight in weights.items() if name in checkpoint.names
    }
    model.load_state_dict(rest, strict=False, assign=True)
    model.tie_weights()
    gguf.compute_buffers(model)
    gguf.refuse_unfilled(model)
    model.generation_config = checkpoint.generation
    model.config.dtype = dtype
    table = model.get_output_embeddings().weight.detach()
    rounded = Int8Weight(weights["head.q"], weights["head.step"], (len(table),), turned=False, way=way)
    head = Int8Head(rounded, table)
    return model.eval().requires_grad_(False), head


def _place_projections(model: Any, weights: dict[str, Tensor], dtype: torch.dtype, way: Way) -> None:
    for number, layer in enumerate(model.model.layers):
        for group, members in GROUPS.items():
            name = f"model.layers.{number}.{group}"
            owners = [layer.get_submodule(member.split(".")[0]) for member in members]
            leaves = [member.split(".")[1] for member in members]
            biases = [f"model.layers.{number}.{member}.bias" for member in members]
            bias = torch.cat([weights[b].float() for b in biases]) if biases[0] in weights else None
            widths = tuple(getattr(o, leaf).out_features for o, leaf in zip(owners, leaves, strict=True))
            weight = Int8Weight(weights[f"{name}.q"], weights[f"{name}.step"], widths, bias, way=way)
            for index, (owner, leaf) in enumerate(zip(owners, leaves, strict=True)):
                setattr(owner, leaf, FrozenLinear(weight, index, dtype))


def cache_path(source: Source, dtype: torch.dtype) -> Path:
    """Return where the rounded form of a checkpoint is kept."""
    plain = str(dtype).removeprefix("torch.")
    return cache_home() / "int8" / f"{source.sha256[:24]}-{RECIPE}-{plain}.safetensors"


def _cached(source: Source, checkpoint: Checkpoint, dtype: torch.dtype, say: Say) -> dict[str, Tensor]:
    path = cache_path(source, dtype)
    if path.is_file():
        with contextlib.suppress(OSError):
            os.utime(path)  # the oldest ones go first
        with contextlib.suppress(SafetensorError):  # cut short, on a disk that lies: made anew
            return dict(load_file(path))
    say(_("rounding {name} to int8, once; the result is kept in {path}", name=source.name, path=path.parent))
    weights = _round(checkpoint, dtype)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(weights, temporary)
        prune(path.parent, KEPT)
    except (OSError, SafetensorError) as error:
        say(_("{path}: can't be kept ({why}); the next start will round again", path=path, why=str(error)[:200]))
        return weights
    weights.clear()
    return dict(load_file(path))  # mapped: memory the system may take back


def _round(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the int8 groups and everything else, by name."""
    members = {
        f"model.layers.{number}.{member}.weight": (f"model.layers.{number}.{group}", place)
        for number in range(checkpoint.config.num_hidden_layers)
        for group, names in GROUPS.items()
        for place, member in enumerate(names)
    }
    head = "lm_head.weight" if "lm_head.weight" in checkpoint.names else "model.embed_tokens.weight"
    pieces: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    out: dict[str, Tensor] = {}

    def take(name: str) -> None:
        if name not in members:
            out[name] = checkpoint.read(name, dtype)
            if name == head:
                out["head.q"], out["head.step"] = quantise_weight(out[name].float(), turn=False)
            return
        group, place = members[name]
        pieces.setdefault(group, {})[place] = quantise_weight(checkpoint.read(name, torch.float32))

    with gguf.single_threaded() as workers, ThreadPoolExecutor(workers) as pool:
        for number in range(
            checkpoint.config.num_hidden_layers
        ):  # layer by layer: a fused group soon replaces its parts
            prefix = f"model.layers.{number}."
            list(pool.map(take, [name for name in checkpoint.names if name.startswith(prefix)]))
            for group in [group for group in pieces if group.startswith(prefix)]:
                parts = [pieces[group][place] for place in sorted(pieces[group])]
                out[f"{group}.q"] = torch.cat([q for q, _step in parts])
                out[f"{group}.step"] = torch.cat([step for _q, step in parts])
                del pieces[group]
        list(pool.map(take, [name for name in checkpoint.names if not name.startswith("model.layers.")]))
    return out


def float_reader(source: Source, dtype: torch.dtype) -> Callable[[int, str], Tensor]:
    """Return a function that reads a layer's group of projections in float: (layer, "qkv") -> (N, K) of ``dtype``."""
    checkpoint = open_checkpoint(source)
    members = {group.split(".")[1]: names for group, names in GROUPS.items()}

    def read(number: int, group: str) -> Tensor:
        names = [f"model.layers.{number}.{member}.weight" for member in members[group]]
        with gguf.single_threaded() as workers, ThreadPoolExecutor(workers) as pool:
            weights = list(pool.map(lambda name: checkpoint.read(name, dtype), names))
        return torch.cat(weights)

    return read


def open_checkpoint(source: Source) -> Checkpoint:
    """Return a reader of a checkpoint's weights under transformers' names; ModelError for a damaged one."""
    return _open_gguf(source) if source.path.is_file() else _open_directory(source.path)


def _open_gguf(source: Source) -> Checkpoint:
    header = read_header(source.path)
    tied = gguf.is_tied(header) if source.tied is None or gguf.HEAD not in header.tensors else source.tied
    config = gguf_config.build(header, tied=tied)
    kind = gguf_config.MODELS[gguf_config.architecture_of(header)]
    with torch.device("meta"):
        sources = gguf.weight_sources(header, kind(config), tied=tied)

    def read(name: str, dtype: torch.dtype) -> Tensor:
        return gguf.read_weight(header, sources[name], dtype).detach()

    ids = GenerationConfig(**gguf_config.token_ids(header))
    return Checkpoint(config, kind, read, tuple(sources), ids)


def _open_directory(path: Path) -> Checkpoint:
    checked = directory.check_directory(path)
    kind: Any = directory.ARCHITECTURES[checked.architecture]
    config = kind.config_class.from_pretrained(path, local_files_only=True)
    with torch.device("meta"):
        model = kind(config)
    needed = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in checked.weights:
        found = directory.safetensors_shapes(file)
        files |= dict.fromkeys(found, file)
        shapes |= found
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for what, names in (
        ("missing keys", needed.keys() - shapes.keys()),
        ("mismatched keys", {name for name in needed.keys() & shapes.keys() if needed[name] != shapes[name]}),
        ("unexpected keys", shapes.keys() - needed.keys() - tied),
    ):
        if names:
            raise ModelError(
                "{path}: {count} {what}, the first is {name}; expected the weights of a plain {architecture}",
                path=path,
                count=len(names),
                what=what,
                name=min(names),
                architecture=checked.architecture,
            )

    def read(name: str, dtype: torch.dtype) -> Tensor:
        with safe_open(files[name], framework="pt") as opened:
            weight: Tensor = opened.get_tensor(name)
        return weight.to(dtype, copy=True).contiguous()

    generation = GenerationConfig.from_model_config(config)
    return Checkpoint(config, kind, read, tuple(needed), generation)

"""A PEFT adapter as a LoRA-GGUF file, which llama.cpp puts on the base it was trained on.

llama.cpp adds ``alpha / rank * B·A`` with one alpha for the whole file and the rank of each pair of matrices. PEFT's
scale may be another one in every module (rsLoRA, ``rank_pattern``, ``alpha_pattern``), which llama.cpp's own converter
ignores without a word. Here the true scale goes into B, so that what llama.cpp adds is what PEFT adds.

What llama.cpp would leave out or put in a wrong place in silence is refused: DoRA, trained tokens, modules that have no
tensor in the base, shapes that are not the base's.

Shapes: r rank, I inputs, O outputs of a module.
"""

import contextlib
import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gguf
import torch

from znatok import files
from znatok.errors import ModelError
from znatok.model.download import system_faults
from znatok.model.gguf_header import Header
from znatok.model.gguf_names import tensor_names
from znatok.model.gguf_writer import gguf_writer, loud

if TYPE_CHECKING:  # at run time PEFT is imported where an adapter is really read: it takes seconds
    from peft import LoraConfig

KEPT = 16
"""How many converted adapters stay in the cache."""

BEYOND_LORA = ("use_dora", "trainable_token_indices")
"""What an adapter's config may set that is more than to add B·A to projections."""
FORMAT = b"znatok lora 1\n"  # part of the cache's key; raise the number when an adapter is written otherwise
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


class _Pair(NamedTuple):
    """The two matrices of an adapted module, float32: A (r, I) and B (O, r)."""

    a: torch.Tensor
    b: torch.Tensor


def lora_gguf(adapter_dir: Path, base: Header, base_sha256: str) -> Path:
    """Return the adapter as LoRA-GGUF, from the cache where this adapter was converted for this base before.

    Raises:
        ModelError: llama.cpp can't put this adapter on this base.
        SystemFault: the cache can't be written.
    """
    folder = files.cache_home() / "lora"
    parts = [FORMAT, base_sha256.encode()]
    for name in (WEIGHTS, CONFIG):
        path = adapter_dir / name
        parts.append(files.sha256(path).encode() if path.is_file() else b"")
    path = folder / f"{hashlib.sha256(b' '.join(parts)).hexdigest()[:32]}.gguf"
    with system_faults(folder):
        if path.is_file():
            with contextlib.suppress(OSError):
                os.utime(path)  # the oldest ones go first
            return path
        write_lora_gguf(adapter_dir, path, base)
        files.prune(folder, KEPT)
    return path


def write_lora_gguf(adapter_dir: Path, target: Path, base: Header) -> None:
    """Write a PEFT adapter as LoRA-GGUF, float32; the same adapter gives the same bytes.

    Args:
        adapter_dir: directory with ``adapter_config.json`` and ``adapter_model.safetensors``.
        target: the file to write, whole or not at all.
        base: head of the GGUF file the adapter is for.

    Raises:
        ModelError: the adapter is damaged, or llama.cpp could not put it on this base as PEFT does.
    """
    from znatok.model.adapters import _read_weights, read_adapter_config
    from znatok.model.gguf_config import architecture_of

    architecture = architecture_of(base)
    config = read_adapter_config(adapter_dir)
    _refuse_unsupported(adapter_dir, config)
    modules = _modules(base, architecture)
    pairs = _pairs(adapter_dir, _read_weights(adapter_dir), config, modules)
    ranks = [pair.a.shape[0] for pair in pairs.values()]
    alpha = float(max(ranks))
    tensors: dict[str, torch.Tensor] = {}
    for name, pair in sorted(pairs.items()):
        tensor = modules[name]
        _refuse_shapes(adapter_dir, name, pair, base.tensors[tensor].shape)
        rank = pair.a.shape[0]
        scale = _scale(adapter_dir, config, name, rank) * rank / alpha  # llama.cpp multiplies by alpha / rank
        tensors[f"{tensor}.lora_a"] = pair.a
        tensors[f"{tensor}.lora_b"] = _arranged(base, tensor, pair.b * scale)
    for name, values in tensors.items():
        if not values.isfinite().all():
            raise ModelError(
                "{path}: {name} is too large for float32 with its scale in it; train again with a lower --lora_alpha",
                path=adapter_dir,
                name=name,
            )
    with files.replacing(target) as temporary:
        _write(temporary, architecture, alpha, tensors)


def _write(path: Path, architecture: str, alpha: float, tensors: Mapping[str, torch.Tensor]) -> None:
    with gguf_writer(path, architecture) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for name, values in tensors.items():
            writer.add_tensor(name, loud(values.numpy()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _refuse_unsupported(adapter_dir: Path, config: "LoraConfig") -> None:
    """Raise ModelError for what a LoRA-GGUF file has no place for."""
    for key in BEYOND_LORA:
        if getattr(config, key):
            raise ModelError(
                "{path}: {key} is set, which llama.cpp does not know; answer with --engine torch",
                path=adapter_dir / CONFIG,
                key=key,
            )


def _modules(base: Header, architecture: str) -> dict[str, str]:
    """Return {name of a projection in transformers: name of its tensor} for all that the base has."""
    layers = base.integer(f"{architecture}.block_count", high=1 << 16)
    return {
        hf.removesuffix(".weight"): ours
        for ours, hf in tensor_names(architecture, layers).items()
        if hf.endswith("_proj.weight") and ours in base.tensors
    }


def _pairs(
    adapter_dir: Path, tensors: Mapping[str, torch.Tensor], config: "LoraConfig", modules: Mapping[str, str]
) -> dict[str, _Pair]:
    """Return the matrices of each adapted module; ModelError unless the file has exactly those its config names."""
    from peft.tuners.tuners_utils import check_target_module_exists

    needed = {
        f"{_PREFIX}{name}.lora_{side}.weight"
        for name in modules
        if check_target_module_exists(config, name)
        for side in "AB"
    }
    if strangers := sorted(tensors.keys() - needed):
        raise ModelError(
            "{path}: {name} has no place among the projections of this base; take an adapter of this base, or"
            " answer with --engine torch",
            path=adapter_dir / WEIGHTS,
            name=strangers[0],
        )
    if missing := sorted(needed - tensors.keys()) or ([] if needed else [_PREFIX]):
        raise ModelError(
            "{path}: {name} is missing; expected every module that target_modules names; train again, or name the"
            " adapter's own base as --model_name",
            path=adapter_dir / WEIGHTS,
            name=missing[0],
        )
    names = {name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for name in needed}
    return {
        name: _Pair(*(tensors[f"{_PREFIX}{name}.lora_{side}.weight"].float().contiguous() for side in "AB"))
        for name in names
    }


def _refuse_shapes(adapter_dir: Path, name: str, pair: _Pair, shape: tuple[int, ...]) -> None:
    """Raise ModelError unless B·A has the shape (O, I) of the base's tensor."""
    a, b = pair.a.shape, pair.b.shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != shape:
        raise ModelError(
            "{path}: {name} has the shapes {found}, the base's tensor has {expected}; give the adapter's own base as"
            " --model_name",
            path=adapter_dir / WEIGHTS,
            name=name,
            found=f"{list(b)} · {list(a)}",
            expected=list(shape),
        )


def _scale(adapter_dir: Path, config: "LoraConfig", name: str, rank: int) -> float:
    """Return what PEFT multiplies B·A of this module by; ModelError where its config promises another rank."""
    from peft.utils.other import get_pattern_key

    def chosen(pattern: Mapping[str, Any] | None, default: Any) -> Any:
        pattern = pattern or {}
        return pattern.get(get_pattern_key(list(pattern), name), default)

    promised = chosen(config.rank_pattern, config.r)
    if rank != promised:
        raise ModelError(
            "{path}: {name} has rank {rank}, its config promises {promised}; train again",
            path=adapter_dir / WEIGHTS,
            name=name,
            rank=rank,
            promised=promised,
        )
    alpha = float(chosen(config.alpha_pattern, config.lora_alpha))
    return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def _arranged(base: Header, tensor: str, b_Or: torch.Tensor) -> torch.Tensor:
    """Put B's rows in the base's order: those of llama's q and k are interleaved for its rotary layout."""
    from znatok.model.gguf import permute
    from znatok.model.gguf_config import permuted_heads

    heads = permuted_heads(base, tensor)
    return (permute(b_Or, heads) if heads else b_Or).contiguous()

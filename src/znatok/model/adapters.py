"""LoRA adapters in PEFT's standard form: put on, saved, attached to a base, switched off.

What others wrote is checked before PEFT sees it: safetensors only, LoRA only, no regular expressions or module names to
import from the adapter's config, every tensor present, finite and of the right shape.
"""

import contextlib
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    PeftModelForCausalLM,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from znatok import files
from znatok.config import LoraOptions
from znatok.errors import ModelError, UsageError, _
from znatok.model.directory import read_json, safetensors_shapes

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The projections that get an adapter: all of attention and all of the MLP."""

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 1024
_PLAIN = re.compile(r"[\w.-]{1,200}", re.ASCII)
# what a plain LoRA adapter's config says; anything else it sets could change the base, need weights of another kind, or
# name a module to import
_KNOWN = {
    *("peft_type", "task_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights", "bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "rank_pattern", "alpha_pattern"),
    "trainable_token_indices",
}
_HARMLESS = {"megatron_core", "qalora_group_size"}  # PEFT writes these values even where nothing uses them


def inject(model: PreTrainedModel, options: LoraOptions, seed: int) -> PeftModel:
    """Put fresh LoRA layers (float32, output zero) on all seven projections of a frozen base.

    Args:
        model: the base; its own parameters are frozen.
        options: rank, scale and dropout.
        seed: of the adapter's start; the global random state is left as it was.

    Raises:
        UsageError: LoRA is switched off.
        ModelError: the model has none of the seven projections.
    """
    if not options.use_lora:
        raise UsageError("--use_lora false: LoRA is the only method znatok has; leave the flag out")
    config = LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=list(TARGETS),
        bias="none",
        task_type="CAUSAL_LM",
    )
    names = sorted({name.rsplit(".", 1)[-1] for name, _module in model.named_modules() if name})
    if not set(names) & set(TARGETS):
        raise ModelError(
            "no layer to train: expected modules called {expected}, the model has {found}",
            expected=", ".join(TARGETS),
            found=", ".join(names),
        )
    with _quiet_peft(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the layers are made on the CPU, whatever device the base is on
        adapted: PeftModel = get_peft_model(model, config)
    return adapted.eval()


def save_adapter(model: PeftModel, directory: Path, base_name: str) -> None:
    """Write the adapter as PEFT, vLLM and peers read it, each file atomically.

    Args:
        model: a model with an adapter.
        directory: where ``adapter_config.json`` and ``adapter_model.safetensors`` go.
        base_name: the base's hub id or catalogue name, stated in the config.

    Raises:
        ModelError: a weight is not finite, so that nothing is written.
    """
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in _adapter_state(model).items()}
    _refuse_infinite(tensors, directory)
    with tempfile.TemporaryDirectory() as scratch:  # PEFT's own writer, for PEFT's own spelling of the config
        config = model.peft_config[model.active_adapter]
        config.save_pretrained(scratch)
        stated = files.read_json(Path(scratch) / CONFIG)
    stated |= {"base_model_name_or_path": base_name, "inference_mode": True}
    stated["target_modules"] = sorted(stated["target_modules"])
    directory.mkdir(parents=True, exist_ok=True)
    with files.replacing(directory / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    files.write_json(directory / CONFIG, stated)


def attach(model: PreTrainedModel, directory: Path, *, trainable: bool = False) -> PeftModel:
    """Put a saved adapter on its base, ready to answer (or, ``trainable``, to train on).

    Raises:
        ModelError: there is no adapter, it is damaged, not LoRA, or made for another base.
    """
    config = read_adapter_config(directory)
    tensors = _read_weights(directory)
    config.inference_mode = not trainable
    bases = {"adapter_base": config.base_model_name_or_path or "?", "base": model.config._name_or_path or "?"}
    try:
        with _quiet_peft(), torch.random.fork_rng(devices=[]):
            adapted = PeftModelForCausalLM(model, config)
    except (ValueError, IndexError) as error:  # of the latter kind where it trains tokens that the base does not have
        raise _other_base(directory, str(error).splitlines()[0][:200], bases) from error
    if difference := _difference(adapted, tensors):
        adapted.unload()  # leaves the base as it was
        raise _other_base(directory, difference, bases)
    set_peft_model_state_dict(adapted, tensors)
    return adapted.eval()


def attach_another(model: PeftModel, directory: Path, name: str) -> None:
    """Put one more saved adapter beside those a model has; ``model.set_adapter(name)`` lets it speak instead of them.

    Raises:
        ModelError: as :func:`attach` has it; the model is left as it was.
    """
    config = read_adapter_config(directory)
    tensors = _read_weights(directory)
    config.inference_mode = True
    speaking = model.active_adapter
    bases = {"adapter_base": config.base_model_name_or_path or "?", "base": "?"}
    try:
        with _quiet_peft(), torch.random.fork_rng(devices=[]):
            model.add_adapter(name, config)
    except (ValueError, IndexError) as error:  # of the latter kind where it trains tokens that the base does not have
        raise _other_base(directory, str(error).splitlines()[0][:200], bases) from error
    if difference := _difference(model, tensors, name):
        model.delete_adapter(name)
        model.set_adapter(speaking)
        raise _other_base(directory, difference, bases)
    set_peft_model_state_dict(model, tensors, adapter_name=name)
    model.eval()


def exchange(model: PreTrainedModel | PeftModel, directory: Path) -> PeftModel:
    """Put a saved adapter on a base in place of the one it has, if it has one.

    Raises:
        ModelError: as :func:`attach` has it; the model is left as it was.
    """
    if not isinstance(model, PeftModel):
        return attach(model, directory)
    before = model.active_adapter
    name = "default" if before != "default" else "other"
    attach_another(model, directory, name)
    model.set_adapter(name, inference_mode=True)
    model.delete_adapter(before)
    return model


def load_weights(model: PeftModel, directory: Path) -> None:
    """Replace the adapter's weights by saved ones of the same shape; ModelError where they don't fit."""
    tensors = _read_weights(directory)
    if difference := _difference(model, tensors):
        name = model.peft_config[model.active_adapter].base_model_name_or_path or "?"
        raise _other_base(directory, difference, {"adapter_base": "?", "base": name})
    set_peft_model_state_dict(model, tensors)


@contextlib.contextmanager
def _quiet_peft() -> Iterator[None]:
    """PEFT 0.21 reads a property transformers 5.23 has renamed; goes when PEFT asks for the new name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def read_adapter_config(directory: Path) -> LoraConfig:
    """Read and check ``adapter_config.json``; ModelError for what znatok can't or must not obey."""
    path = directory / CONFIG
    if not path.is_file():
        raise ModelError("{path}: no {name}; expected the directory of a training run", path=directory, name=CONFIG)
    stated = read_json(path)
    if stated.get("peft_type") != "LORA":
        raise ModelError("{path}: peft_type {found}; expected LORA", path=path, found=str(stated.get("peft_type"))[:40])
    for key in sorted(stated.keys() - _KNOWN - _HARMLESS):
        if stated[key]:  # off or empty, it changes nothing: newer PEFTs write more keys
            raise ModelError("{path}: {key} is set; expected a plain LoRA adapter", path=path, key=key[:60])
    _check_values(path, stated)
    try:
        return LoraConfig(**{key: stated[key] for key in stated.keys() & _KNOWN})
    except (ValueError, TypeError) as error:
        raise ModelError("{path}: {why}", path=path, why=str(error).splitlines()[0][:300]) from error


def _check_values(path: Path, stated: dict[str, Any]) -> None:
    """Allow plain names and sane numbers only: PEFT uses some of these strings as regular expressions."""
    ranks = [stated.get("r"), *_mapping(stated, "rank_pattern").values()]
    names = [stated.get("target_modules"), stated.get("exclude_modules") or []]
    names += [list(_mapping(stated, "rank_pattern")), list(_mapping(stated, "alpha_pattern"))]
    alphas = [stated.get("lora_alpha"), *_mapping(stated, "alpha_pattern").values()]
    start, dropout = stated.get("init_lora_weights", True), stated.get("lora_dropout", 0.0)
    checks = {
        "r": all(_is_number(rank, int) and 1 <= rank <= MAX_RANK for rank in ranks),
        "lora_alpha": all(_is_number(alpha, int, float) and abs(alpha) < 1e6 for alpha in alphas),
        "lora_dropout": _is_number(dropout, int, float) and 0 <= dropout < 1,
        "target_modules": all(
            isinstance(group, list) and all(isinstance(name, str) and _PLAIN.fullmatch(name) for name in group)
            for group in names
        ),
        "layers_to_transform": _are_numbers(stated.get("layers_to_transform")),
        "trainable_token_indices": _are_numbers(stated.get("trainable_token_indices")),
        "bias": stated.get("bias", "none") == "none",
        # other starts take a part out of the base's weights, so the adapter alone is not the whole difference
        "init_lora_weights": isinstance(start, bool) or start == "gaussian",
    }
    for key, good in checks.items():
        if not good:
            raise ModelError(
                "{path}: {key} is {found}; expected a plain LoRA adapter",
                path=path,
                key=key,
                found=str(stated.get(key))[:80],
            )


def _is_number(value: object, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _are_numbers(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(_is_number(item, int) for item in value))


def _mapping(stated: dict[str, Any], key: str) -> dict[str, Any]:
    value = stated.get(key) or {}
    return value if isinstance(value, dict) else {"": value}  # an empty name fails the check of names


def _read_weights(directory: Path) -> dict[str, torch.Tensor]:
    path = directory / WEIGHTS
    if not path.is_file():
        pickled = (directory / "adapter_model.bin").is_file()
        found = _("adapter_model.bin, a pickle, which can run code") if pickled else _("no weights")
        raise ModelError("{path}: {found}; expected {name}", path=directory, found=found, name=WEIGHTS)
    safetensors_shapes(path)  # refuses a file cut short or made longer
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except SafetensorError as error:
        raise ModelError("{path}: can't be read: {why}; get it anew", path=path, why=error) from error
    _refuse_infinite(tensors, path)
    return tensors


def _refuse_infinite(tensors: dict[str, torch.Tensor], where: Path) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                "{path}: the adapter's {name} holds NaN or infinity; train again with a lower --learning_rate",
                path=where,
                name=name,
            )


def _difference(model: PeftModel, tensors: dict[str, torch.Tensor], adapter: str = "default") -> str:
    """Describe the first difference between what an adapter needs and what the file holds; empty for none."""
    wanted = {name: tensor.shape for name, tensor in _adapter_state(model, adapter).items()}
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors:
            return _("{name} is missing", name=name)
        if name not in wanted:
            return _("{name} has no place in it", name=name)
        if tensors[name].shape != wanted[name]:
            found, expected = list(tensors[name].shape), list(wanted[name])
            return _("{name} has the shape {found}, expected {expected}", name=name, found=found, expected=expected)
    return ""


def _other_base(directory: Path, difference: str, bases: dict[str, str]) -> ModelError:
    return ModelError(
        "{path}: the adapter for {adapter_base} does not fit the model {base}: {difference};"
        " give the adapter's own base as --model_name",
        path=directory,
        difference=difference,
        **bases,
    )


def _adapter_state(model: PeftModel, adapter: str = "default") -> dict[str, torch.Tensor]:
    # embeddings are never saved whole; asking PEFT to decide would make it look the base up on the hub
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return state


@contextlib.contextmanager
def base_only(model: PeftModel) -> Iterator[None]:
    """Switch the adapter off inside; outputs are then bit-equal to the base's."""
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for name, parameter in model.named_parameters():  # PEFT makes adapters trainable when switching them on again
            parameter.requires_grad_(trainable[name])


def delta_norm(model: PeftModel) -> float:
    """Return the sum of ‖scale · B·A‖ over all adapted layers: 0.0 for an adapter that changes nothing."""
    total = 0.0
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.active_adapters:
                if name in module.lora_A:
                    # ‖BA‖² = tr(BᵀB·AAᵀ), with r x r matrices instead of one of the layer's size
                    a_ri, b_or = (side[name].weight.detach().double() for side in (module.lora_A, module.lora_B))
                    square = ((b_or.T @ b_or) * (a_ri @ a_ri.T)).sum().clamp(min=0)
                    total += abs(module.scaling[name]) * float(square.sqrt())
    return total

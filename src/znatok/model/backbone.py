"""A transformers model, with or without PEFT's adapters, as the fast engine's backbone; nothing is copied twice.

The modules stay what they are: PEFT still saves, loads and switches the adapters, whose very parameters the backbone
trains. Float projections of one input are laid side by side in memory, and the modules' weights become views of that.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from znatok.errors import _
from znatok.fast.backbone import Backbone
from znatok.fast.block import Adapter, Group, Layer
from znatok.fast.linear import FloatWeight, FrozenLinear, FrozenWeight

FAMILY = (LlamaForCausalLM, Qwen2ForCausalLM)


def obstacle(model: Any) -> str:
    """Return why the fast engine can't compute this model, or an empty string."""
    base = base_of(model)
    if not isinstance(base, FAMILY):
        return _("{name} is not built like Llama", name=type(base).__name__)
    config: Any = base.config
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        return _("scaled rotary positions")
    if config.hidden_act != "silu":
        return _("the activation {name}", name=config.hidden_act)
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return _("attention through a window")
    for layer in base.model.layers:
        for modules in _groups(layer):
            if len({_speaks(module) for module in modules}) > 1:
                return _("adapters on some projections of a layer only")
    return ""


def is_rounded(model: Any) -> bool:
    """Tell whether the model's projections are int8."""
    return any(isinstance(module, FrozenLinear) for module in model.modules())


def base_of(model: Any) -> PreTrainedModel:
    """Return the transformers model inside PEFT's wrapper, if there is one."""
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def build_backbone(model: Any, *, dropout: float = 0.0) -> Backbone:
    """Return the backbone of a model that :func:`obstacle` finds nothing against.

    Args:
        model: with float or int8 projections, adapters attached or not; those that are switched off are left out.
        dropout: on the adapters' inputs while training.
    """
    base: Any = base_of(model)
    embedding = base.get_input_embeddings().weight.detach()
    return Backbone(
        embedding=embedding,
        layers=[_layer(layer, base.config) for layer in base.model.layers],
        norm=base.model.norm.weight.detach().float(),
        eps=base.config.rms_norm_eps,
        inverse_frequencies=base.model.rotary_emb.inv_freq.detach().float(),
        dtype=embedding.dtype,
        p=dropout,
    )


def _groups(layer: Any) -> list[list[Any]]:
    attention, mlp = layer.self_attn, layer.mlp
    return [
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    ]


def _layer(layer: Any, config: Any) -> Layer:
    qkv, out, gate_up, down = (_group(modules) for modules in _groups(layer))
    return Layer(
        qkv=qkv,
        out=out,
        gate_up=gate_up,
        down=down,
        norms=(layer.input_layernorm.weight.detach().float(), layer.post_attention_layernorm.weight.detach().float()),
        eps=config.rms_norm_eps,
        head=layer.self_attn.head_dim,
    )


def _group(modules: Sequence[Any]) -> Group:
    projections = [module.base_layer if isinstance(module, LoraLayer) else module for module in modules]
    return Group(_weight(projections), tuple(_adapter(module) for module in modules if _speaks(module)))


def _speaks(module: Any) -> bool:
    """Tell whether an adapter is switched on here; of several adapters of a model, not each has a part everywhere."""
    return (
        isinstance(module, LoraLayer)
        and not module.disable_adapters
        and any(name in module.lora_A for name in module.active_adapters)
    )


def _adapter(module: Any) -> Adapter:
    (name,) = module.active_adapters
    return Adapter(module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name])


def _weight(projections: Sequence[nn.Linear]) -> FrozenWeight:
    first = projections[0]
    if isinstance(first, FrozenLinear):
        return first.group
    widths = tuple(module.out_features for module in projections)
    if len(projections) == 1:
        return FloatWeight(first.weight.detach(), widths, _bias(projections))
    fused = torch.cat([module.weight.detach() for module in projections])
    for module, rows in zip(projections, fused.split(widths), strict=True):
        module.weight = nn.Parameter(rows, requires_grad=False)
    return FloatWeight(fused, widths, _bias(projections))


def _bias(projections: Sequence[nn.Linear]) -> Tensor | None:
    if all(module.bias is None for module in projections):
        return None
    biases = [
        torch.zeros(module.out_features) if module.bias is None else module.bias.detach().float()
        for module in projections
    ]
    return torch.cat(biases)

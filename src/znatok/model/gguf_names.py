"""Tensor names: GGUF's on one side, transformers' on the other, one to one."""

_MODEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_OWN = {
    "llama": {"ffn_norm.weight": "post_attention_layernorm.weight"},
    "qwen2": {
        "ffn_norm.weight": "post_attention_layernorm.weight",
        "attn_q.bias": "self_attn.q_proj.bias",
        "attn_k.bias": "self_attn.k_proj.bias",
        "attn_v.bias": "self_attn.v_proj.bias",
    },
    "gemma3": {
        "ffn_norm.weight": "pre_feedforward_layernorm.weight",
        "attn_q_norm.weight": "self_attn.q_norm.weight",
        "attn_k_norm.weight": "self_attn.k_norm.weight",
        "post_attention_norm.weight": "post_attention_layernorm.weight",
        "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    },
}

ARCHITECTURES = tuple(_OWN)
"""GGUF's names of the architectures znatok reads."""


def tensor_names(architecture: str, layers: int) -> dict[str, str]:
    """Return {GGUF name: transformers name} for a model of ``layers`` layers; the head is in it, tied or not."""
    names = dict(_MODEL)
    for number in range(layers):
        for ours, theirs in (_LAYER | _OWN[architecture]).items():
            names[f"blk.{number}.{ours}"] = f"model.layers.{number}.{theirs}"
    return names

"""The LoRA-GGUF writer against PEFT: what llama.cpp adds to the base is what PEFT adds."""

import pytest
import torch

import llama_files
from llama_files import (
    change_weights,
    needs_llama,
    opened,
    said,
    shortfalls,
    spoil,
    write_adapter,
    write_base,
)
from znatok.errors import ModelError
from znatok.generate.torch_engine import TorchEngine
from znatok.model import lora_gguf as module
from znatok.model.adapters import attach
from znatok.model.gguf_header import read_header
from znatok.model.lora_gguf import lora_gguf, write_lora_gguf

IDS = [1, 20, 30, 40, 200, 77, 5]
KINDS = {
    "plain": {},
    "rsLoRA": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 7, "layers.1.mlp.down_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"v_proj": 3, "layers.0.self_attn.k_proj": 40}},
    "all of it": {
        "use_rslora": True,
        "rank_pattern": {"o_proj": 5, "up_proj": 1},
        "alpha_pattern": {"o_proj": 2, "gate_proj": 30},
        "target_modules": ["o_proj", "up_proj", "gate_proj", "k_proj"],
        "layers_to_transform": [1],
    },
    "negative scale": {"lora_alpha": -6},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: write_base(folder, name) for name in llama_files.PRE}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZNATOK_HOME", str(tmp_path / "cache"))


@torch.no_grad()
def peft_logprobs(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(0)


def agree(found, wanted_V, tolerance):
    assert len(found) >= 20
    for token, value in found.items():
        assert value == pytest.approx(float(wanted_V[token]), abs=tolerance)


@needs_llama
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_llama_cpp_with_the_written_adapter_says_what_peft_says(tmp_path, bases, architecture, kind):
    base = bases[architecture]
    folder = write_adapter(tmp_path / "adapter", base, **KINDS[kind])
    write_lora_gguf(folder, tmp_path / "lora.gguf", read_header(base))
    got = llama_files.loaded(base)
    bare_V = peft_logprobs(got.model, IDS)
    tuned = attach(got.model, folder)
    tuned_V = peft_logprobs(tuned, IDS)
    assert (tuned_V - bare_V).abs().max() > 0.1  # there is something to get wrong
    server, plain_voice, tuned_voice = opened(base, tmp_path / "lora.gguf")
    # keys and values are float16 in llama.cpp: that is what remains
    agree(llama_files.logprobs(server, IDS, tuned=True), tuned_V, 0.005)
    agree(llama_files.logprobs(server, IDS, tuned=False), bare_V, 0.005)
    asked = [llama_files.request("12 the"), llama_files.request("the 1212")]
    engine = TorchEngine(tuned, plain_voice._chat)
    for one in asked:
        assert max(shortfalls(engine, one, said(tuned_voice, one)[0])) < 0.03
        with tuned.disable_adapter():
            assert max(shortfalls(engine, one, said(plain_voice, one)[0])) < 0.03
    server.close()


@needs_llama
def test_gemma_too(tmp_path, bases):
    folder = write_adapter(tmp_path / "adapter", bases["gemma3"], use_rslora=True)
    write_lora_gguf(folder, tmp_path / "lora.gguf", read_header(bases["gemma3"]))
    model = attach(llama_files.loaded(bases["gemma3"]).model, folder)
    server, _plain, _tuned = opened(bases["gemma3"], tmp_path / "lora.gguf")
    ids = [2, 260, 261, 262, 263, 264, 265, 266, 267]  # longer than the window of its attention
    agree(llama_files.logprobs(server, ids, tuned=True), peft_logprobs(model, ids), 0.005)
    server.close()


@needs_llama
def test_with_the_adapter_at_zero_the_base_speaks_to_the_bit(tmp_path, bases):
    folder = write_adapter(tmp_path / "adapter", bases["llama"])
    write_lora_gguf(folder, tmp_path / "lora.gguf", read_header(bases["llama"]))
    bare, _voice, _none = opened(bases["llama"])
    wanted = llama_files.logprobs(bare, IDS)
    bare.close()
    both, _plain, _tuned = opened(bases["llama"], tmp_path / "lora.gguf")
    assert llama_files.logprobs(both, IDS, tuned=False) == wanted
    assert llama_files.logprobs(both, IDS, tuned=True) != wanted
    assert llama_files.logprobs(both, IDS, tuned=False) == wanted
    both.close()


def test_the_same_adapter_gives_the_same_bytes(tmp_path, bases):
    folder = write_adapter(tmp_path / "adapter", bases["qwen2"])
    paths = [tmp_path / name for name in ("one.gguf", "two.gguf")]
    for path in paths:
        write_lora_gguf(folder, path, read_header(bases["qwen2"]))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    metadata = read_header(paths[0]).metadata
    assert metadata["general.architecture"] == "qwen2"
    assert (metadata["general.type"], metadata["adapter.type"]) == ("adapter", "lora")
    assert metadata["adapter.lora.alpha"] == 4  # the rank: llama.cpp's own scale is 1


# Refusals


def config_with(**changes):
    return lambda folder: spoil(folder, **changes)


def without(name):
    return lambda folder: change_weights(folder, lambda t: {k: v for k, v in t.items() if name not in k})


def also(name, shape=(4, 32)):
    return lambda folder: change_weights(folder, lambda t: t | {f"base_model.model.{name}": torch.ones(shape)})


def cut(name, size):
    def change(tensors):
        for key in tensors:
            if name in key:
                tensors[key] = tensors[key][:size].contiguous()

    return lambda folder: change_weights(folder, change)


def not_a_number(tensors):
    next(iter(tensors.values())).view(-1)[0] = float("nan")


@pytest.mark.parametrize(
    ("damage", "said_of_it"),
    [
        (config_with(use_dora=True), "use_dora is set, which llama.cpp does not know; answer with --engine torch"),
        (config_with(trainable_token_indices=[1, 2]), "trainable_token_indices is set"),
        (config_with(bias="all"), "bias is all"),
        (also("lm_head.lora_A.weight"), "lm_head.lora_A.weight has no place"),
        (also("model.layers.0.self_attn.q_proj.lora_magnitude_vector"), "lora_magnitude_vector has no place"),
        (also("model.layers.9.self_attn.q_proj.lora_A.weight"), r"layers\.9\..* has no place"),
        (without("layers.1.mlp.up_proj.lora_B"), r"layers\.1\.mlp\.up_proj\.lora_B\.weight is missing"),
        (config_with(target_modules=["other_proj"]), "has no place"),
        (cut("layers.0.mlp.up_proj.lora_B", 10), r"up_proj has the shapes \[10, 4\] · \[4, 32\].*\[64, 32\]"),
        (cut("layers.0.mlp.up_proj.lora_A", 3), "up_proj has the shapes"),
        (config_with(r=8), "has rank 4, its config promises 8"),
        (lambda folder: change_weights(folder, not_a_number), "NaN or infinity"),
    ],
)
def test_what_llama_cpp_would_get_wrong_in_silence_is_refused(tmp_path, bases, damage, said_of_it):
    folder = damage(write_adapter(tmp_path / "adapter", bases["qwen2"]))
    target = tmp_path / "lora.gguf"
    with pytest.raises(ModelError, match=said_of_it):
        write_lora_gguf(folder, target, read_header(bases["qwen2"]))
    assert not target.exists()


def test_a_scale_that_leaves_float32_is_refused(tmp_path, bases):
    folder = write_adapter(tmp_path / "adapter", bases["qwen2"], size=1e35, lora_alpha=900_000)
    with pytest.raises(ModelError, match="too large for float32"):
        write_lora_gguf(folder, tmp_path / "lora.gguf", read_header(bases["qwen2"]))


def test_the_adapter_of_another_base_is_refused(tmp_path, bases):
    other = write_base(tmp_path / "other", "qwen2", hidden_size=64)
    folder = write_adapter(tmp_path / "adapter", other)
    with pytest.raises(ModelError, match="give the adapter's own base"):
        write_lora_gguf(folder, tmp_path / "lora.gguf", read_header(bases["qwen2"]))


# The cache


def test_an_adapter_is_converted_once(tmp_path, bases, monkeypatch):
    folder = write_adapter(tmp_path / "adapter", bases["qwen2"])
    header = read_header(bases["qwen2"])
    first = lora_gguf(folder, header, "a" * 64)
    assert first.parent == tmp_path / "cache" / "lora"
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_lora_gguf", lambda *_: pytest.fail("converted again"))
        assert lora_gguf(folder, header, "a" * 64) == first
    others = [lora_gguf(folder, header, "b" * 64), lora_gguf(spoil(folder, lora_alpha=3), header, "a" * 64)]
    change_weights(folder, lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    others.append(lora_gguf(folder, header, "a" * 64))
    assert len({first, *others}) == 4


def test_the_cache_keeps_the_newest(tmp_path, bases, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    folder, header = write_adapter(tmp_path / "adapter", bases["qwen2"]), read_header(bases["qwen2"])
    first = lora_gguf(folder, header, "0")
    second = lora_gguf(folder, header, "1")
    assert lora_gguf(folder, header, "0") == first  # used again: the second one is the oldest now
    third = lora_gguf(folder, header, "2")
    assert set(first.parent.glob("*.gguf")) == {first, third}
    assert not second.exists()


def test_a_refused_adapter_leaves_nothing_in_the_cache(tmp_path, bases):
    folder = spoil(write_adapter(tmp_path / "adapter", bases["qwen2"]), use_dora=True)
    with pytest.raises(ModelError):
        lora_gguf(folder, read_header(bases["qwen2"]), "a")
    assert not list((tmp_path / "cache").rglob("*.gguf"))

"""int8 models from checkpoints: what is rounded, what is kept, and where."""

import shutil
import stat

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import gguf_files
import packs
from znatok.config import ModelOptions
from znatok.errors import ModelError
from znatok.fast.compiler import build
from znatok.fast.linear import FrozenLinear, Int8Weight
from znatok.fast.product import INT_MM
from znatok.model import quantised
from znatok.model.adapters import TARGETS
from znatok.model.load import load_base
from znatok.model.quantised import cache_path, float_reader, load_quantised
from znatok.model.source import resolve

pytestmark = pytest.mark.skipif(not INT_MM.exact(), reason="this processor's int8 product is not exact")

KINDS = ["qwen2.gguf", "llama.gguf", "untied.gguf", "directory"]


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    build()  # the kernels stay in the user's own cache
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ZNATOK_HOME", str(home))
    return home


def made(kind, folder, seed=0):
    """Write a checkpoint; return its source and the float model."""
    if kind == "directory":
        model = gguf_files.model("qwen2", seed)
        model.save_pretrained(folder / "model")
        return resolve(str(folder / "model")), model
    architecture = "qwen2" if kind == "untied.gguf" else kind.removesuffix(".gguf")
    changes = {"tie_word_embeddings": False} if kind == "untied.gguf" else {}
    model = gguf_files.model(architecture, seed, **changes)
    head = model.lm_head.weight if changes else None
    return resolve(str(gguf_files.write(folder / kind, model, head=head))), model


@pytest.fixture(params=KINDS)
def checkpoint(request, tmp_path):
    return made(request.param, tmp_path)


@pytest.fixture
def gguf_source(tmp_path):
    return made("qwen2.gguf", tmp_path)[0]


def tensors(model):
    """Return every number of a rounded model by name."""
    found = {name: p for name, p in model.named_parameters() if not p.isnan().any()}
    for name, module in model.named_modules():
        if isinstance(module, FrozenLinear):
            found |= {f"{name}.q": module.frozen.q, f"{name}.step": module.frozen.step}
    return found


@torch.no_grad()
def test_an_int8_model_speaks_like_the_float_one(checkpoint):
    source, exact = checkpoint
    model, _head = load_quantised(source, torch.float32)
    ids = torch.arange(3, 43).reshape(2, 20)
    ours, theirs = model(ids).logits, exact(ids).logits
    assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.99
    assert not torch.equal(ours, theirs)


def test_projections_are_rounded_and_everything_else_is_as_it_was(checkpoint):
    source, exact = checkpoint
    model, _head = load_quantised(source, torch.float32)
    rounded = {name for name, module in model.named_modules() if isinstance(module, FrozenLinear)}
    assert rounded == {name for name, _module in exact.named_modules() if name.rsplit(".", 1)[-1] in TARGETS}
    assert model.state_dict().keys() == exact.state_dict().keys()
    kept = 0
    for name, tensor in exact.state_dict().items():
        if name.removesuffix(".weight") not in rounded:  # embedding, head, norms and biases
            assert torch.equal(model.state_dict()[name], tensor), name
            kept += 1
    assert kept > 5
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config.tie_word_embeddings == exact.config.tie_word_embeddings


def test_projections_of_one_input_lie_side_by_side_with_their_biases(checkpoint):
    source, exact = checkpoint
    model, _head = load_quantised(source, torch.float32)
    for layer, other in zip(model.model.layers, exact.model.layers, strict=True):
        names = ("q_proj", "k_proj", "v_proj")
        modules = [getattr(layer.self_attn, name) for name in names]
        assert len({id(module.group) for module in modules}) == 1
        assert modules[0].group.widths == (32, 16, 16)
        assert [module.frozen.q.shape for module in modules] == [(32, 32), (16, 32), (16, 32)]
        biases = [getattr(other.self_attn, name).bias for name in names]
        if biases[0] is None:
            assert modules[0].group.bias is None
        else:
            assert torch.equal(modules[0].group.bias, torch.cat(biases))
            assert all(torch.equal(module.bias, bias) for module, bias in zip(modules, biases, strict=True))


def test_the_head_is_rounded_beside_its_float_rows(checkpoint):
    source, exact = checkpoint
    model, head = load_quantised(source, torch.float32)
    assert torch.equal(head.rows_VD, exact.get_output_embeddings().weight)
    assert head.rows_VD.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert head.weight.q.shape == head.rows_VD.shape
    slopes = torch.randn(20, len(head.rows_VD), generator=torch.Generator().manual_seed(0))
    assert packs.distance(product_back(head.weight, slopes), slopes @ head.rows_VD) < 0.02


def product_back(weight, rows):
    from znatok.fast.kernels import kernels

    raw = weight.transposed(weight.encode_gradient(rows))
    return kernels().finish(raw, weight.input_part(None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_rest_has_the_compute_dtype(checkpoint, dtype):
    model, _head = load_quantised(checkpoint[0], dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.dtype is dtype
    assert model.model.layers[0].mlp.up_proj.frozen.step.dtype is torch.float32
    assert model.model.rotary_emb.inv_freq.dtype is torch.float32


def test_the_reader_gives_the_float_weights_of_a_group(checkpoint):
    source, exact = checkpoint
    read = float_reader(source, torch.float32)
    attention, mlp = exact.model.layers[1].self_attn, exact.model.layers[1].mlp
    expected = {
        "qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
        "out": [attention.o_proj],
        "gate_up": [mlp.gate_proj, mlp.up_proj],
        "down": [mlp.down_proj],
    }
    for group, modules in expected.items():
        assert torch.equal(read(1, group), torch.cat([module.weight for module in modules]))
    assert float_reader(source, torch.bfloat16)(0, "down").dtype is torch.bfloat16


# The file in the cache


def test_the_second_start_maps_what_the_first_has_rounded(checkpoint, home, monkeypatch):
    source, _exact = checkpoint
    said = []
    first, _head = load_quantised(source, torch.bfloat16, say=said.append)
    assert len(said) == 1
    assert said[0] == f"rounding {source.name} to int8, once; the result is kept in {home / 'int8'}"
    path = cache_path(source, torch.bfloat16)
    assert list(home.rglob("*.safetensors")) == [path]
    monkeypatch.setattr(quantised, "quantise_weight", None)  # a call would be a TypeError
    before = path.read_bytes()
    second, _head = load_quantised(source, torch.bfloat16, say=said.append)
    assert len(said) == 1
    assert path.read_bytes() == before
    ours, theirs = tensors(second), tensors(first)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_both_ways_to_a_model_give_the_same_numbers(tmp_path):
    """The same weights from a GGUF file and from a directory."""
    ours = tensors(load_quantised(made("qwen2.gguf", tmp_path)[0], torch.float32)[0])
    theirs = tensors(load_quantised(made("directory", tmp_path)[0], torch.float32)[0])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_checkpoints_and_formats_have_files_of_their_own(tmp_path, home):
    (tmp_path / "other").mkdir()
    one, two = made("qwen2.gguf", tmp_path)[0], made("qwen2.gguf", tmp_path / "other", seed=1)[0]
    for source, dtype in ((one, torch.float32), (two, torch.float32), (one, torch.bfloat16)):
        load_quantised(source, dtype)
    assert len(list((home / "int8").iterdir())) == 3
    name = "model.layers.0.mlp.down_proj.q"
    kept = [tensors(load_quantised(source, torch.float32)[0])[name] for source in (one, two)]
    assert not torch.equal(*kept)


def test_the_cache_keeps_the_models_that_were_used_last(tmp_path, home, monkeypatch):
    monkeypatch.setattr(quantised, "KEPT", 2)
    (tmp_path / "other").mkdir()
    one, two = made("qwen2.gguf", tmp_path)[0], made("qwen2.gguf", tmp_path / "other", seed=1)[0]
    for source, dtype in ((one, torch.float32), (two, torch.float32), (one, torch.float32), (one, torch.bfloat16)):
        load_quantised(source, dtype)
    kept = {cache_path(one, torch.float32), cache_path(one, torch.bfloat16)}
    assert set((home / "int8").iterdir()) == kept


@pytest.mark.parametrize("damage", ["cut short", "empty", "no safetensors"])
def test_a_damaged_file_is_made_anew(gguf_source, damage):
    expected = tensors(load_quantised(gguf_source, torch.float32)[0])
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    path = cache_path(gguf_source, torch.float32)
    whole = path.read_bytes()
    path.unlink()  # not overwritten: the first model is still mapped
    path.write_bytes({"cut short": whole[:-100], "empty": b"", "no safetensors": b"\xff" * 100}[damage])
    said = []
    found = tensors(load_quantised(gguf_source, torch.float32, say=said.append)[0])
    assert said[0].startswith("rounding ")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with safe_open(path, framework="pt") as opened:
        assert "model.layers.0.mlp.down.q" in opened.keys()  # noqa: SIM118  # no mapping


def test_a_cache_that_is_full_costs_only_time(gguf_source, home, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantised, "save_file", full)
    said = []
    model, _head = load_quantised(gguf_source, torch.float32, say=said.append)
    assert len(said) == 2
    assert "can't be kept ([Errno 28] No space left on device); the next start will round again" in said[1]
    assert torch.isfinite(model(torch.arange(3, 9)[None]).logits).all()
    assert not [path for path in home.rglob("*") if path.is_file() and "digests" not in path.parts]


def test_a_cache_that_can_not_be_written_costs_only_time(gguf_source, home):
    (home / "int8").write_text("a file where the folder should be", encoding="utf-8")
    said = []
    model, _head = load_quantised(gguf_source, torch.float32, say=said.append)
    assert "the next start will round again" in said[1]
    assert torch.isfinite(model(torch.arange(3, 9)[None]).logits).all()


def test_the_file_can_be_read_by_others_who_share_the_cache(gguf_source):
    load_quantised(gguf_source, torch.float32)
    assert stat.S_IMODE(cache_path(gguf_source, torch.float32).stat().st_mode) & 0o044


# Checkpoints that must be refused


@pytest.fixture
def copy(tiny_dir, tmp_path):
    return shutil.copytree(tiny_dir, tmp_path / "model")


def test_a_missing_tensor_is_an_error(copy):
    file = copy / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing keys.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_quantised(resolve(str(copy)), torch.float32)


def test_a_missing_tensor_of_a_gguf_file_is_an_error(tmp_path):
    path = gguf_files.write(tmp_path / "t.gguf", gguf_files.model("qwen2"), drop=("blk.1.ffn_up.weight",))
    with pytest.raises(ModelError, match=r"1 tensors are missing, the first is model\.layers\.1\.mlp\.up_proj"):
        load_quantised(resolve(str(path)), torch.float32)


def test_heads_that_do_not_fit_the_weights_are_refused_as_in_float(copy):
    import json

    config = copy / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_key_value_heads": 1}), encoding="utf-8")
    with pytest.raises(ModelError, match="model"):
        load_quantised(resolve(str(copy)), torch.float32)


def test_a_tensor_too_many_is_refused_as_in_float(copy):
    file = copy / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["model.layers.0.mlp.extra.weight"] = torch.zeros(2)
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="unexpected keys"):
        load_quantised(resolve(str(copy)), torch.float32)


# Through the front door


@pytest.mark.usefixtures("int8_here")
def test_training_loads_in_int8_and_talking_in_float(tiny_dir):
    options = ModelOptions(model_name=str(tiny_dir), dtype="auto")
    trained, talking = load_base(options, training=True), load_base(options)
    assert trained.int8
    assert isinstance(trained.model.model.layers[0].mlp.down_proj, FrozenLinear)
    assert isinstance(trained.model.model.layers[0].mlp.down_proj.group, Int8Weight)
    assert trained.dtype_reason.startswith("int8: VNNI")
    assert trained.dtype is talking.dtype
    assert not talking.int8
    assert type(talking.model.model.layers[0].mlp.down_proj) is torch.nn.Linear
    assert trained.tokenizer.get_vocab() == talking.tokenizer.get_vocab()
    assert trained.model.config._name_or_path == tiny_dir.name

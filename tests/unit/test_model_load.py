"""Finding and loading a base: every accepted form of a name, and every model that must be refused."""

import json
import shutil

import huggingface_hub
import pytest
import safetensors.torch
import torch

import gguf_files
import tiny
from znatok.config import ModelOptions
from znatok.errors import ModelError
from znatok.model import catalogue, directory, gguf, source
from znatok.model.load import choose_dtype, load_base, machine_capabilities, resolve


@pytest.fixture(autouse=True)
def _home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ZNATOK_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def copy(tiny_dir, tmp_path):
    """Return a copy of the tiny model's directory, to be spoilt."""
    return shutil.copytree(tiny_dir, tmp_path / "model")


def load(path, **options):
    return load_base(ModelOptions(model_name=str(path), **{"dtype": "float32"} | options))


def edit(path, **changes):
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}), encoding="utf-8")


# What can be loaded


def test_a_directory_loads_frozen_and_in_evaluation_mode(tiny_dir):
    loaded = load(tiny_dir)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.source.kind == "directory"
    assert loaded.source.architecture == "Qwen2ForCausalLM"
    assert len(loaded.source.sha256) == 64
    assert loaded.dtype is loaded.model.dtype is torch.float32
    assert "float32" in loaded.dtype_reason


def test_no_path_of_this_machine_is_kept_as_the_models_name(tiny_dir):
    assert load(tiny_dir).model.config._name_or_path == tiny_dir.name


def test_the_requested_dtype_is_what_the_weights_have(tiny_dir):
    assert {p.dtype for p in load(tiny_dir, dtype="bfloat16").model.parameters()} == {torch.bfloat16}


def test_the_hash_of_a_directory_follows_its_weights_only(copy):
    before = resolve(str(copy)).sha256
    (copy / "README.md").write_text("hello", encoding="utf-8")
    assert resolve(str(copy)).sha256 == before
    file = copy / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["model.norm.weight"] += 1
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    assert resolve(str(copy)).sha256 != before


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gemma3"])
def test_a_gguf_file_loads_like_the_model_it_was_made_from(architecture, tmp_path):
    model = gguf_files.model(architecture)
    path = gguf_files.write(tmp_path / "tiny.gguf", model)
    loaded = load(path)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert loaded.source.kind == "gguf"
    assert loaded.source.architecture == type(model).__name__
    assert loaded.model.config._name_or_path == "tiny.gguf"


def test_a_directory_of_that_name_comes_before_the_catalogue(tiny_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_dir, "gemma-3-270m")
    assert resolve("gemma-3-270m").kind == "directory"


def test_a_catalogue_name_is_fetched_and_stands_for_its_upstream(tmp_path, monkeypatch):
    path = gguf_files.write(tmp_path / "tiny.gguf", gguf_files.model("qwen2"))
    monkeypatch.setattr(catalogue, "get", lambda name, say: path)
    found = resolve("qwen2.5-coder-0.5b-instruct")
    entry = catalogue.find("qwen2.5-coder-0.5b-instruct")
    assert (found.kind, found.path, found.sha256) == ("catalogue", path, entry.sha256)
    assert found.base_name == "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    assert found.tied
    loaded = load("qwen2.5-coder-0.5b-instruct")
    assert loaded.model.config._name_or_path == "Qwen/Qwen2.5-Coder-0.5B-Instruct"


def test_an_own_copy_of_a_catalogue_file_is_recognised_by_its_hash(tmp_path, monkeypatch):
    path = gguf_files.write(tmp_path / "mine.gguf", gguf_files.model("qwen2"))
    entry = catalogue.entries()[0]
    monkeypatch.setattr(source.digests, "sha256", lambda _path: entry.sha256)
    assert resolve(str(path)).upstream == entry.upstream


def test_a_hub_id_is_checked_before_its_weights_are_fetched(tiny_dir, tmp_path, monkeypatch):
    asked = []

    def snapshot(name, *, allow_patterns, ignore_patterns, local_files_only):
        asked.append((name, "*.safetensors" in allow_patterns, local_files_only))
        return str(shutil.copytree(tiny_dir, tmp_path / "c0ffee", dirs_exist_ok=True))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    found = resolve("org/Tiny-1B")
    assert asked == [("org/Tiny-1B", False, True), ("org/Tiny-1B", True, True)]
    assert (found.kind, found.revision, found.base_name) == ("hub", "c0ffee", "org/Tiny-1B")


# Names that lead nowhere


def test_a_hub_id_without_network_says_how_to_get_it():
    with pytest.raises(ModelError) as caught:
        resolve("Qwen/Qwen2.5-1.5B")
    text = str(caught.value)
    assert "HF_HUB_OFFLINE is set" in text
    assert "hf download Qwen/Qwen2.5-1.5B" in text
    assert "--model_name qwen2.5-coder-1.5b-instruct" in text
    assert "znatok model list" in text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["qwen2.5", "a/b/c", "../nowhere", "org/na me", "-x/y", "", "model.gguf", "~/none"])
def test_a_name_of_no_known_form_is_a_model_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if not name:
        name = "no such thing"
    with pytest.raises(ModelError, match=r"no such file|not a directory"):
        resolve(name)


# Number formats


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True, "platform": "linux"}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"cuda_bf16": True}, torch.bfloat16),
        ({"bf16": True, "platform": "linux"}, torch.bfloat16),
        ({"bf16": True, "platform": "darwin"}, torch.float32),
        ({"avx512_f": True, "avx512_vnni": True, "platform": "linux"}, torch.float32),
        ({"avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_bfloat16_is_chosen_only_where_it_is_native(capabilities, dtype):
    assert choose_dtype("auto", capabilities).dtype is dtype


def test_bfloat16_can_be_had_anywhere_with_a_warning():
    dtype, reason = choose_dtype("bfloat16", {"avx2": True})
    assert dtype is torch.bfloat16
    assert "emulates" in reason
    assert "emulates" not in choose_dtype("bfloat16", {"amx_bf16": True}).reason


def test_float32_is_given_where_requested():
    assert choose_dtype("float32", {"amx_bf16": True}).dtype is torch.float32


def test_this_machine_can_be_asked():
    assert choose_dtype("auto") == choose_dtype("auto", machine_capabilities())


# Directories that must be refused


def test_code_of_the_models_own_is_never_run(copy):
    for name in ("config.json", "tokenizer_config.json"):
        edit(copy / name, auto_map={"AutoModelForCausalLM": "evil.Model"})
        with pytest.raises(ModelError, match=f"{name} asks to run code"):
            load(copy)
        edit(copy / name, auto_map=...)


@pytest.mark.parametrize("found", [["GPT2LMHeadModel"], [], None, ["Qwen2ForCausalLM", "X"], "Qwen2ForCausalLM"])
def test_other_architectures_are_refused(copy, found):
    edit(copy / "config.json", architectures=found)
    with pytest.raises(ModelError, match="expected one of Qwen2ForCausalLM"):
        load(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 1),
        ("num_hidden_layers", "2"),
        ("vocab_size", 10**9),
        ("hidden_size", 64),
        ("intermediate_size", 10**9),
        ("num_attention_heads", 0),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(copy, key, value):
    edit(copy / "config.json", **{key: value})
    with pytest.raises(ModelError, match=f"config.json says {key}"):
        load(copy)


def test_heads_that_do_not_fit_the_weights_are_refused(copy):
    edit(copy / "config.json", num_key_value_heads=1)
    with pytest.raises(ModelError, match="model"):
        load(copy)


def test_quantised_weights_are_refused(copy):
    edit(copy / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(ModelError, match="quantised"):
        load(copy)


def test_a_config_that_is_no_json_object_is_refused(copy):
    for text in ("{", "[]", "\udcff", "[" * 100_000):
        (copy / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ModelError, match=r"config\.json"):
            load(copy)


def test_pickled_weights_are_refused_with_a_way_to_convert_them(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickles \(pytorch_model\.bin\).*safetensors/convert"):
        load(copy)


def test_a_directory_without_weights_or_config_is_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        load(copy)
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(copy)


def test_an_adapter_given_as_a_model_is_explained(tmp_path, copy):
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="an adapter, not a model"):
        load(tmp_path)
    (copy / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="model and adapter in one directory"):
        load(copy)


@pytest.mark.parametrize("change", ["truncated", "longer", "empty", "header", "length", "zeros"])
def test_damaged_safetensors_are_named_with_their_size(copy, change):
    file = copy / "model.safetensors"
    blob = file.read_bytes()
    file.write_bytes(
        {
            "truncated": blob[:-10],
            "longer": blob + b"x",
            "empty": b"",
            "header": blob[:9] + b"\xff" + blob[10:],
            "length": b"\xff" * 8 + blob[8:],
            "zeros": bytes(len(blob)),
        }[change]
    )
    with pytest.raises(ModelError, match=rf"model\.safetensors: damaged: {file.stat().st_size} bytes"):
        load(copy)


def test_a_missing_tensor_is_an_error_not_a_random_start(copy):
    file = copy / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing keys.*up_proj"):
        load(copy)


def test_a_tokenizer_that_belongs_to_a_larger_model_is_refused(copy):
    model = tiny.tiny_model(vocab_size=300)
    model.save_pretrained(copy)
    with pytest.raises(ModelError, match="the embedding has 300 rows"):
        load(copy)


def test_a_missing_or_damaged_tokenizer_is_a_model_error(copy):
    (copy / "tokenizer.json").write_text('{"model": {"type": "BPE"}}', encoding="utf-8")
    with pytest.raises(ModelError, match="its tokenizer can't be loaded"):
        load(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        load(copy)


def test_the_json_of_a_model_may_not_be_huge(copy, monkeypatch):
    monkeypatch.setattr(directory, "MAX_JSON", 10)
    with pytest.raises(ModelError, match="bytes of JSON"):
        load(copy)


def test_what_is_said_names_the_model_and_the_reason_for_its_dtype(tiny_dir):
    said = []
    load_base(ModelOptions(model_name=str(tiny_dir), dtype="float32"), say=said.append)
    assert said == [f"loading {tiny_dir}; float32 as requested"]


def test_a_tied_catalogue_model_is_not_compared_again(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "is_tied", None)  # a call would be a TypeError
    model = gguf_files.model("qwen2")
    path = gguf_files.write(tmp_path / "t.gguf", model, head=model.model.embed_tokens.weight)
    assert gguf.load_gguf(path, torch.float32, tied=True).model.config.tie_word_embeddings


# Files that were made to hurt


@pytest.mark.parametrize("text", ['{"hidden_size": ' + "9" * 5000 + "}", "[" * 100_000, '{"a": NaN', "\ud800"])
def test_json_that_python_will_not_read_is_an_error_of_ours(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ModelError, match=r"config\.json: can't be read as JSON"):
        directory.read_json(path)


def test_a_header_with_an_endless_shape_is_damage(tmp_path):
    header = b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ModelError, match="damaged"):
        directory.safetensors_shapes(path)

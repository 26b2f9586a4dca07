import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import llama_files
import tiny
from znatok.config import LoraOptions, ModelOptions, SampleOptions
from znatok.errors import ModelError, SystemFault, UsageError
from znatok.expert import Voice, open_expert
from znatok.files import sha256, write_json
from znatok.generate import llamacpp
from znatok.generate.engine import Request
from znatok.model.adapters import inject, save_adapter
from znatok.model.machine import device
from znatok.runs import Run
from znatok.tokens.chat import dialogue

ASKED = Request(tuple(dialogue("Что такое PLA?")), SampleOptions(temperature=0, max_new_tokens=8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a base and the adapter of a run on it."""
    folder = tmp_path_factory.mktemp("expert")
    tiny.save_tiny(folder / "base", initializer_range=0.3)
    tuned = inject(tiny.tiny_model(initializer_range=0.3), LoraOptions(), seed=1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    save_adapter(tuned, folder / "run", "base")
    return folder


@pytest.fixture
def run(folder, tmp_path):
    return Run(shutil.copytree(folder / "run", tmp_path / "run"))


def options(folder, name="base"):
    return ModelOptions(model_name=str(folder / name), dtype="float32")


def say(expert, voice):
    with expert.speaking(voice) as engine:
        return engine.answers([ASKED])[0].text


def test_one_loaded_model_speaks_in_both_voices(folder, run):
    expert = open_expert(options(folder), run, "системное")
    bare = open_expert(options(folder), None, "системное")
    assert expert.voices == (Voice.BASE, Voice.TUNED)
    assert bare.voices == (Voice.BASE,)
    tuned = say(expert, Voice.TUNED)
    assert say(expert, Voice.BASE) == say(bare, Voice.BASE) != tuned
    assert say(expert, Voice.TUNED) == tuned  # the adapter is on again
    assert not any(parameter.requires_grad for parameter in expert.model.parameters())


def test_the_adapter_is_on_again_after_an_error(folder, run):
    expert = open_expert(options(folder), run, "")
    tuned = say(expert, Voice.TUNED)
    with pytest.raises(ValueError, match="inside"), expert.speaking(Voice.BASE):
        raise ValueError("inside")
    assert say(expert, Voice.TUNED) == tuned


def test_a_voice_that_is_not_there_is_refused(folder):
    bare = open_expert(options(folder), None, "")
    with pytest.raises(UsageError, match="no adapter is loaded"), bare.speaking(Voice.TUNED):
        pytest.fail("spoke")


def test_a_run_brings_base_format_and_system_message(folder, run):
    base = {"name": str(folder / "base"), "sha256": None}
    write_json(run.manifest, {"base": base, "chat": {"format": "plain", "system": "обученное"}})
    expert = open_expert(ModelOptions(model_name="", dtype="float32"), run, "другое")
    assert (expert.chat.name, expert.system) == ("plain", "обученное")
    assert expert.loaded.source.path == folder / "base"


def test_an_adapter_from_elsewhere_needs_a_base_and_takes_our_defaults(folder, run):
    with pytest.raises(ModelError, match=r"no manifest\.json says which base it fits; name it with --model_name"):
        open_expert(ModelOptions(model_name="", dtype="float32"), run, "")
    expert = open_expert(options(folder), run, "наше")
    assert (expert.chat.name, expert.system) == ("chatml", "наше")


def test_another_base_than_the_trained_one_is_refused(folder, run):
    sha256 = open_expert(options(folder), None, "").loaded.source.sha256
    write_json(run.manifest, {"base": {"name": "base", "sha256": "0" * 64}})
    if sha256 is None:
        pytest.skip("directories carry no hash")
    with pytest.raises(ModelError, match=r"was trained on base \(0{12}\), this is .*: their weights differ"):
        open_expert(options(folder), run, "")


def test_weights_without_a_name_are_refused_as_well(folder, run):
    """A manifest that gives a hash and no name was a KeyError."""
    write_json(run.manifest, {"base": {"sha256": "00"}})
    with pytest.raises(ModelError, match=r"was trained on \? \(00\), this is "):
        open_expert(options(folder), run, "")


def test_a_run_without_an_adapter_is_refused_before_the_base_is_loaded(tmp_path):
    run = Run(tmp_path)
    write_json(run.manifest, {"base": {"name": "/nowhere/at/all"}})
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors; train first"):
        open_expert(ModelOptions(model_name=""), run, "")


def test_another_run_is_put_on_the_base_that_is_there(folder, run, tmp_path, monkeypatch):
    """`/adapter` read the base a second time, and held it twice in memory."""
    other = Run(shutil.copytree(folder / "run", tmp_path / "other"))
    turn_round(other)
    alone = {one: say(open_expert(options(folder), one, ""), Voice.TUNED) for one in (run, other)}
    base = say(open_expert(options(folder), None, ""), Voice.BASE)
    assert len({base, *alone.values()}) == 3
    expert = open_expert(options(folder), None, "")
    monkeypatch.setattr("znatok.model.load.load_base", lambda *_, **__: pytest.fail("the base was loaded again"))
    for one in (run, other, other, run):
        expert = expert.with_run(one)
        assert (expert.run, say(expert, Voice.TUNED), say(expert, Voice.BASE)) == (one, alone[one], base)
    assert len(expert.model.peft_config) == 1  # what does not speak is not kept
    assert not any(parameter.requires_grad for parameter in expert.model.parameters())


@pytest.mark.parametrize("fault", ["other base", "no adapter", "other shape"])
def test_a_run_that_does_not_fit_leaves_the_one_that_speaks(folder, run, tmp_path, fault):
    other = Run(shutil.copytree(folder / "run", tmp_path / "other"))
    if fault == "other base":
        write_json(other.manifest, {"base": {"name": "base", "sha256": "0" * 64}})
    elif fault == "no adapter":
        (other.path / "adapter_model.safetensors").unlink()
    else:
        save_adapter(inject(tiny.tiny_model(hidden_size=16), LoraOptions(), seed=1), other.path, "base")
    expert = open_expert(options(folder), run, "")
    said = [say(expert, voice) for voice in Voice]
    with pytest.raises(ModelError):
        expert.with_run(other)
    assert [say(expert, voice) for voice in Voice] == said


def turn_round(run):
    """Make a run's adapter do the opposite."""
    path = run.path / "adapter_model.safetensors"
    save_file({name: -tensor if "lora_B" in name else tensor for name, tensor in load_file(path).items()}, path)


# llama.cpp


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base as a GGUF file and the adapter of a run on it."""
    folder = tmp_path_factory.mktemp("files")
    base = llama_files.write_base(folder)
    llama_files.write_adapter(folder / "run", base)
    manifest = {"base": {"name": str(base), "sha256": sha256(base)}, "chat": {"format": "chatml", "system": "12"}}
    write_json(folder / "run" / "manifest.json", manifest)
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZNATOK_HOME", str(tmp_path / "cache"))


SHORT = Request(tuple(dialogue("12 the", "12")), SampleOptions(temperature=0, max_new_tokens=12))


@llama_files.needs_llama
def test_llama_cpp_speaks_in_both_voices_and_loads_no_model(files, own_cache, capsys, monkeypatch):
    fast = open_expert(ModelOptions(model_name=""), Run(files / "run"), "")
    assert "F32, cpu, engine llamacpp\n" in capsys.readouterr().err
    assert (fast.engine, fast.chat.name, fast.system) == ("llamacpp", "chatml", "12")
    exact = open_expert(ModelOptions(model_name="", dtype="float32"), Run(files / "run"), "")
    assert "engine torch (llama.cpp can't: --dtype float32 is for torch)\n" in capsys.readouterr().err
    for voice in Voice:
        with fast.speaking(voice) as engine, exact.speaking(voice) as reference:
            (said,) = llama_files.said(engine, SHORT)
            assert max(llama_files.shortfalls(reference, SHORT, said)) < 0.03
    assert "loaded" not in vars(fast)
    assert fast.base_sha256 == exact.base_sha256


@llama_files.needs_llama
def test_losses_come_from_torch_whatever_answers(files, own_cache):
    fast = open_expert(ModelOptions(model_name=""), Run(files / "run"), "", "llamacpp")
    ids = torch.tensor([[1, 2, 3, 40]])
    with fast.weights(Voice.TUNED) as model, torch.no_grad():
        tuned = model(input_ids=ids).logits
    with fast.weights(Voice.BASE) as model, torch.no_grad():
        assert not torch.equal(model(input_ids=ids).logits, tuned)
    with (
        pytest.raises(UsageError),
        open_expert(ModelOptions(model_name=str(files / "qwen2.gguf")), None, "").weights(Voice.TUNED),
    ):
        pytest.fail("spoke")


def test_torch_asked_for_is_torch_without_a_word(files, capsys):
    expert = open_expert(ModelOptions(model_name=str(files / "qwen2.gguf"), dtype="float32"), None, "", "torch")
    assert expert.engine == "torch"
    assert f"float32, {device()}, engine torch\n" in capsys.readouterr().err


def test_a_file_that_is_not_the_trained_base_is_refused_before_anything_is_converted(files, run, own_cache, tmp_path):
    write_json(run.manifest, {"base": {"name": str(files / "qwen2.gguf"), "sha256": "0" * 64}})
    with pytest.raises(ModelError, match="their weights differ"):
        open_expert(ModelOptions(model_name=""), run, "")
    assert not (tmp_path / "cache" / "lora").exists()


def test_llama_cpp_asked_for_and_not_installed_is_an_error_with_the_remedy(files, own_cache, monkeypatch):
    monkeypatch.setattr(llamacpp, "find_spec", lambda _name: None)
    with pytest.raises(SystemFault, match=r"pip install 'znatok\[llamacpp\]'"):
        open_expert(ModelOptions(model_name=str(files / "qwen2.gguf")), None, "", "llamacpp")
    expert = open_expert(ModelOptions(model_name=str(files / "qwen2.gguf")), None, "")
    assert expert.engine == "torch"

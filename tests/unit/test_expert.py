import shutil

import pytest
import torch

import tiny
from znatok.config import LoraOptions, ModelOptions, SampleOptions
from znatok.errors import ModelError, UsageError
from znatok.expert import Voice, open_expert
from znatok.files import write_json
from znatok.generate.engine import Request
from znatok.model.adapters import inject, save_adapter
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


def test_a_run_without_an_adapter_is_refused_before_the_base_is_loaded(tmp_path):
    run = Run(tmp_path)
    write_json(run.manifest, {"base": {"name": "/nowhere/at/all"}})
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors; train first"):
        open_expert(ModelOptions(model_name=""), run, "")

"""Exports that must not be: more than a form holds, disks, signals, other people's places, what nobody may see."""

import contextlib
import json
import re
import resource
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import gguf_files
import helpers
import llama_files
import tiny
from znatok.cli import main
from znatok.config import ExportOptions, ModelOptions
from znatok.errors import GateError, ModelError, SystemFault, UsageError
from znatok.expert import Voice, open_expert
from znatok.export import card, merge, parity
from znatok.export import export as module
from znatok.export.export import export, hint_of
from znatok.export.formats import Kind, as_stored
from znatok.export.ollama import modelfile, rendered
from znatok.model.gguf import load_gguf
from znatok.model.gguf_header import read_header
from znatok.runs import Run
from znatok.tokens.chat import ChatFormat, Message, Role

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
COMPUTED = ("merged", "gguf", "lora-gguf", "ollama")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return llama_files.write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return llama_files.write_adapter(tmp_path_factory.mktemp("adapter") / "run", base)


@pytest.fixture
def publishable(adapter, tmp_path):
    """Return an adapter for a base that others can load too."""
    folder = shutil.copytree(adapter, tmp_path / "mine")
    return Run(llama_files.spoil(folder, base_model_name_or_path="Qwen/Qwen2.5-1.5B"))


def options(base, target, to, **more):
    return ExportOptions(to=to, model_name=str(base), export_dir=str(target), **{"check": False} | more)


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[5, 9, 40, 7]])).logits[0].float()


# Adapters that are more than these forms hold


@pytest.mark.parametrize(
    ("made", "spoilt", "key"),
    [
        ({"use_dora": True}, {}, "use_dora"),
        ({"trainable_token_indices": [5, 7]}, {}, "trainable_token_indices"),
        ({}, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({}, {"bias": "all"}, "bias"),
    ],
)
def test_an_adapter_that_is_more_than_lora_is_refused_by_name(base, tmp_path, capsys, made, spoilt, key):
    folder = llama_files.spoil(llama_files.write_adapter(tmp_path / "run", base, **made), **spoilt)
    for to in COMPUTED:
        words = ["export", str(folder), "--to", to, "--model_name", str(base), "--export_dir", str(tmp_path / "x")]
        assert main(words) == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert f"adapter_config.json: {key} is " in line
        assert "--engine" not in line  # no help to who exports
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_card_hands_on_what_can_not_be_merged(base, tmp_path):
    folder = llama_files.write_adapter(tmp_path / "run", base, use_dora=True)
    llama_files.spoil(folder, base_model_name_or_path="Qwen/Qwen2.5-1.5B")
    made = export(Run(folder), options(base, tmp_path / "card", "card"))
    assert json.loads((made.path / "adapter_config.json").read_text(encoding="utf-8"))["use_dora"] is True


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # which nobody may have read
@pytest.mark.parametrize("to", ["merged", "gguf"])
def test_a_change_of_one_end_is_not_merged_into_both(base, tmp_path, to):
    run = Run(llama_files.write_adapter(tmp_path / "run", base, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ModelError, match="the adapter changes lm_head, which is embedding and head in one here"):
        export(run, options(base, tmp_path / "x", to))
    assert not (tmp_path / "x").exists()


# Weights


@pytest.mark.parametrize("to", ["merged", "gguf"])
def test_a_head_of_its_own_comes_out_as_it_was(tmp_path, to):
    source = gguf_files.model("qwen2", tie_word_embeddings=False)
    base = gguf_files.write(tmp_path / "untied.gguf", source, head=source.lm_head.weight)
    run = Run(llama_files.write_adapter(tmp_path / "run", base))
    export(run, options(base, tmp_path / "x", to, quant="bf16", merged_dtype="float32"))
    expert = open_expert(ModelOptions(model_name=str(base), dtype="float32"), run, "", "torch")
    with expert.weights(Voice.TUNED) as model:
        wanted = logits(model)
    if to == "merged":
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "x", dtype=torch.float32)
        assert torch.equal(found.lm_head.weight, source.lm_head.weight)
    else:
        found = load_gguf(tmp_path / "x" / "model.gguf", torch.float32).model
        assert torch.equal(found.lm_head.weight, source.lm_head.weight.bfloat16().float())
    assert not found.config.tie_word_embeddings
    assert torch.allclose(logits(found), wanted, atol=1e-4 if to == "merged" else 0.5)


def spoilt_directory(folder, value):
    """Write a base with one weight of this value, and an adapter for it."""
    model = tiny.tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    model.save_pretrained(folder / "base")
    tiny.tiny_tokenizer().save_pretrained(folder / "base")
    run = helpers.trained(folder / "good", tiny.write_pairs(folder / "pairs.jsonl"), folder / "run", num_train_epochs=1)
    run.manifest.unlink()  # which would say that the base is another one
    return run


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
def test_weights_that_are_no_numbers_or_too_large_are_refused(tiny_dir, tmp_path, value):
    shutil.copytree(tiny_dir, tmp_path / "good")
    run = spoilt_directory(tmp_path, value)
    for more in ({"to": "merged", "merged_dtype": "float16"}, {"to": "gguf", "quant": "f16"}, {"to": "gguf"}):
        wanted = (ModelError, r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinity")
        if value == 1e5:
            wanted = (UsageError, r"(layers\.1\.mlp\.up_proj|blk\.1\.ffn_up)\.weight holds values too large")
        with pytest.raises(wanted[0], match=wanted[1]):
            export(run, options(tmp_path / "base", tmp_path / "x", **more))
    assert not (tmp_path / "x").exists()
    if value == 1e5:
        export(run, options(tmp_path / "base", tmp_path / "x", "gguf", quant="bf16"))


@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q8_0, Kind.Q5_0, Kind.Q6_K, Kind.Q4_K])
def test_no_format_with_half_precision_in_it_takes_what_that_can_not_hold(kind):
    with pytest.raises(UsageError, match="too large for float16; take --quant bf16"):
        as_stored(torch.full((1, 256), 1e9), kind, "blk.0.ffn_up.weight")


def test_rows_without_a_token_are_named_and_marked_as_unused(tiny_dir, tmp_path):
    run = helpers.trained(tiny_dir, tiny.write_pairs(tmp_path / "pairs.jsonl"), tmp_path / "run", num_train_epochs=1)
    export(run, options(tiny_dir, tmp_path / "x", "gguf"))
    metadata = read_header(tmp_path / "x" / "model.gguf").metadata
    tokens, kinds = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    names = tiny.tiny_tokenizer().get_vocab()
    assert len(tokens) == len(kinds) == 512
    assert len(names) < 512
    assert all(tokens[number] == name for name, number in names.items())
    assert [(tokens[n], kinds[n]) for n in range(len(names), 512)] == [(f"[PAD{n}]", 5) for n in range(len(names), 512)]
    assert [kinds[names[name]] for name in tiny.CONTROL] == [3, 3, 3]


# The gate


@pytest.mark.parametrize(
    ("to", "remedy"),
    [("merged", "--merged_dtype"), ("lora-gguf", "--to gguf"), ("gguf", "--quant"), ("ollama", "--quant")],
)
def test_the_gate_advises_what_this_form_has(to, remedy):
    found = parity.Parity("torch", 8, 7, 256, 250, largest_lead=9.0, drift=0.3, template=True)
    with pytest.raises(GateError, match=f"; take [a ]*(finer )?{remedy}") as caught:
        found.refuse_failed(f"--to {to}", module.REMEDIES[to]())
    assert ("--quant" in str(caught.value)) is (remedy == "--quant")


# Disks and signals


@pytest.mark.parametrize("to", [*COMPUTED, "card", "hub"])
def test_a_disk_that_is_too_small_is_seen_before_anything_is_written(base, publishable, tmp_path, monkeypatch, to):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 10})())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemFault, match=r"x: \d+\.\d GB are needed, 0\.0 GB are free; make room"):
        export(publishable, options(base, tmp_path / "x", to, hub_name="me/mine"))
    assert sorted(path for path in tmp_path.rglob("*") if path.name != ".lock") == before


@contextlib.contextmanager
def only_small_files():
    """Have the system refuse every byte of a file after the first 4000, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("to", [*COMPUTED, "card"])
def test_a_disk_that_fills_up_on_the_way_is_one_line_and_nothing_is_left(base, publishable, tmp_path, to):
    message = r"x: can't be written: (File too large|.*os error 27)"
    with pytest.raises(SystemFault, match=message), only_small_files():
        export(publishable, options(base, tmp_path / "x", to))
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


def test_what_a_killed_export_leaves_is_removed_by_the_next(base, publishable, tmp_path):
    target = tmp_path / "x"
    export(publishable, options(base, target, "gguf"))
    before = (target / "model.gguf").read_bytes()
    words = ["export", str(publishable.path), "--to", "merged", "--model_name", str(base), "--force"]
    process = helpers.started("znatok", *words, "--export_dir", str(target), cwd=tmp_path)
    helpers.wait_for((tmp_path / ".x.part").exists, process)
    assert helpers.stop(process, signal.SIGKILL)[0] == -signal.SIGKILL
    assert (tmp_path / ".x.part").is_dir()
    assert (target / "model.gguf").read_bytes() == before
    export(publishable, options(base, target, "card", force=True))
    assert not (tmp_path / ".x.part").exists()
    assert "model.gguf" not in {path.name for path in target.iterdir()}


def test_ctrl_c_leaves_the_place_as_it_was(base, publishable, tmp_path, monkeypatch):
    whole = merge.merged_tensors

    def interrupted(expert):
        yield next(whole(expert))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(merge, "merged_tensors", interrupted)
    words = ["--to", "merged", "--model_name", str(base), "--export_dir", str(tmp_path / "x")]
    assert main(["export", str(publishable.path), *words]) == 130
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


# Places


@pytest.mark.parametrize("mark", [None, "{", '{"files": 5}', '{"files": ["README.md"]}', "[" * 10_000])
def test_a_folder_of_somebody_elses_is_never_replaced(base, publishable, tmp_path, mark):
    target = tmp_path / "x"
    target.mkdir()
    for name in ("README.md", "notes.txt", "model.gguf", "config.json"):  # names that exports have, too
        (target / name).write_text("mine", encoding="utf-8")
    if mark is not None:
        (target / module.MARK).write_text(mark, encoding="utf-8")
    with pytest.raises(UsageError, match="in it is nothing znatok exported"):
        export(publishable, options(base, target, "card", force=True))
    assert (target / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_the_folder_one_stands_in_is_a_place_too(publishable, base, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(publishable, options(base, ".", "card"))
    assert (tmp_path / "here" / "README.md").is_file()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["my run", 'it\'s "mine"; touch x', "$(touch x)", "мой прогон", "a\nb"])
def test_a_hint_can_be_pasted_into_a_shell_whatever_names_are(name):
    folder, run = f"/srv/{name}/export", Run(Path("/srv") / name)
    assert shlex.split(hint_of("merged", run, Path(folder))) == ["vllm", "serve", folder]
    assert shlex.split(hint_of("gguf", run, Path(folder)))[-1] == f"{folder}/model.gguf"
    assert shlex.split(hint_of("lora-gguf", run, Path(folder)))[-1] == f"{folder}/adapter.gguf"
    cd, place, _and, *create = shlex.split(hint_of("ollama", run, Path(folder)))
    assert (cd, place, create[:2]) == ("cd", folder, ["ollama", "create"])
    assert re.fullmatch(r"[a-z0-9._-]+", create[2])  # all that Ollama takes
    assert shlex.split(hint_of("card", run, Path(folder)))[-2:] == [folder, "--private"]


# Modelfiles


class Spelled:
    """Stands for a tokenizer whose end token is spelled like this."""

    eos_token_id, bos_token_id = 1, None

    def __init__(self, name):
        self.name = name

    def get_vocab(self):
        return {"a": 0, self.name: 1}


@pytest.mark.parametrize("name", ['<"end">', "<end>\nFROM /etc/passwd", "{{ .System }}", "<e}}>", "\r", "\0"])
def test_a_token_that_would_leave_its_quotes_is_refused(name):
    with pytest.raises(ModelError, match="which a Modelfile can't quote") as caught:
        modelfile(ChatFormat("plain", "", Spelled(name), 1), "", "model.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["<｜конец▁ответа｜>", "</s>", "<'$e>"])
def test_a_token_with_foreign_letters_is_written_as_it_is(name):
    text = modelfile(ChatFormat("plain", "", Spelled(name), 1), "", "model.gguf")
    assert f'PARAMETER stop "{name}"\n' in text
    said = [Message(Role.USER, "a"), Message(Role.ASSISTANT, "b"), Message(Role.USER, "c")]
    assert rendered(text, said) == f"### User:\na\n\n### Assistant:\nb{name}\n\n### User:\nc\n\n### Assistant:\n"


HOSTILE = "{% for a in range(10**9) %}{% for b in range(10**9) %}{{ ''.__class__.__mro__ }}{% endfor %}{% endfor %}"


def test_a_hostile_template_of_the_base_is_never_rendered_and_goes_nowhere(tiny_dir, tmp_path):
    base = Path(shutil.copytree(tiny_dir, tmp_path / "base"))
    (base / "chat_template.jinja").write_text(HOSTILE, encoding="utf-8")
    run = helpers.trained(base, tiny.write_pairs(tmp_path / "pairs.jsonl"), tmp_path / "run", num_train_epochs=1)
    export(run, options(base, tmp_path / "x", "merged", check=True, merged_dtype="float32"))
    export(run, options(base, tmp_path / "g", "ollama"))
    for folder in (run.path, tmp_path / "x"):
        assert "<|im_start|>" in (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for file in (*run.path.rglob("*"), *(tmp_path / "x").iterdir(), *(tmp_path / "g").iterdir()):
        assert not file.is_file() or HOSTILE.encode() not in file.read_bytes(), file


# What others must not see


def test_no_path_of_an_option_gets_into_a_card(publishable, base, tmp_path):
    places = {"val_path": "/srv/data/val.jsonl", "output_dir": "/mnt/big/mine"}
    facts = {
        "data": {"sha256": "0" * 64, "pairs": 3}, "base": {"sha256": "1" * 64}, "lora": {"lora_r": 8},
        "dtype": "float32", "chat": {"format": "chatml", "system": ""}, "options": {"seed": 1, **places},
    }  # fmt: skip
    publishable.manifest.write_text(json.dumps(facts), encoding="utf-8")
    text = (export(publishable, options(base, tmp_path / "card", "card")).path / card.CARD).read_text(encoding="utf-8")
    assert "| val_path | val.jsonl |" in text
    assert "/srv" not in text
    assert "/mnt" not in text


def test_a_card_of_a_run_that_says_little_tells_what_is_known(publishable, base, tmp_path):
    """Another program's manifest, or one by hand, was a KeyError."""
    publishable.manifest.write_text(json.dumps({"base": {"name": "b"}, "lora": {"lora_r": 8}}), encoding="utf-8")
    text = (export(publishable, options(base, tmp_path / "card", "card")).path / card.CARD).read_text(encoding="utf-8")
    assert "| data, SHA-256 | not known |" in text
    assert "| lora_r | 8 |" in text


@pytest.mark.parametrize("inside", [lambda path: {"name_or_path": path}, lambda path: {"a": [{"b": path}]}])
def test_a_config_that_tells_any_path_of_this_machine_is_not_published(publishable, base, tmp_path, inside):
    place = tmp_path.parent / "модели"  # neither in the home nor beside the run
    place.mkdir(exist_ok=True)
    text = json.dumps(inside(str(place)))  # with its letters escaped
    (publishable.path / "tokenizer_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: it tells .*модели"):
        export(publishable, options(base, tmp_path / "card", "card"))


def test_the_hubs_token_is_in_no_message_and_in_no_file(publishable, base, tmp_path, monkeypatch, capsys):
    token = "hf_" + "Secret" * 6
    monkeypatch.setenv("HF_TOKEN", token)

    def refused(self, *_words, **_options):
        raise OSError(f"401 Client Error for Bearer {self.token or token}")

    monkeypatch.setattr(card.HfApi, "create_repo", refused)
    place = tmp_path / "hub"
    words = ["--to", "hub", "--hub_name", "me/mine", "--model_name", str(base), "--export_dir", str(place)]
    assert main(["export", str(publishable.path), *words]) == 5
    said = capsys.readouterr()
    assert "the hub: 401 Client Error for Bearer ***" in said.err
    assert token not in said.err + said.out
    helpers.trained(base, tiny.write_pairs(tmp_path / "pairs.jsonl"), tmp_path / "run", num_train_epochs=1)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) > 15
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path
    said = capsys.readouterr()
    assert token not in said.err + said.out

"""Exports: every form of a tuned model answers as its adapter does, and what does not is refused."""

import dataclasses
import http.client
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import gguf
import pytest
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import filter_repo_objects
from peft.tuners.lora import Linear
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

import helpers
import llama_files
import serving
import tiny
from znatok.cli import main
from znatok.config import ExportOptions, ModelOptions, SampleOptions, ServeOptions
from znatok.errors import GateError, ModelError, SystemFault, UsageError
from znatok.expert import Voice, open_expert
from znatok.export import api, merged_gguf, ollama, parity
from znatok.export import export as module
from znatok.export.export import export
from znatok.export.formats import as_stored
from znatok.export.merge import merged_tensors
from znatok.export.ollama import modelfile, rendered
from znatok.generate.engine import sayable
from znatok.model.gguf import load_gguf
from znatok.model.gguf_header import read_header
from znatok.runs import Run
from znatok.serve import roster
from znatok.tokens.chat import ChatFormat, Message, Role, choose_format

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning"),
]
DIALOGUE = [Message(Role.USER, "Привет"), Message(Role.ASSISTANT, "да"), Message(Role.USER, "Почём 12 кг?")]


@pytest.fixture
def server():
    """Have a server of the run asked as well."""


@pytest.fixture(autouse=True)
def _unasked(request, monkeypatch):
    """Let no server be asked where a test is not about it: it takes time."""
    if "server" not in request.fixturenames:
        monkeypatch.setattr(api, "installed", lambda: False)


@pytest.fixture(scope="module", params=["qwen2", "llama", "gemma3"])
def based(request, tmp_path_factory):
    """Return (architecture, base GGUF, adapter directory)."""
    folder = tmp_path_factory.mktemp(request.param)
    base = llama_files.write_base(folder / "base", request.param)
    return request.param, base, llama_files.write_adapter(folder / "run", base)


@pytest.fixture(scope="module")
def trained(tiny_dir, tmp_path_factory):
    """Return a run whose base is a directory."""
    folder = tmp_path_factory.mktemp("export")
    data = tiny.write_pairs(folder / "pairs.jsonl")
    return helpers.trained(tiny_dir, data, folder / "run", learning_rate=0.05, data_options={"val_share": 0})


def exported(base, adapter, target, to, **options):
    settings = ExportOptions(to=to, model_name=str(base), export_dir=str(target), **options)
    return export(Run(Path(adapter)), settings)


def logits(model, ids=(5, 9, 40, 7)):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def tuned_logits(base, adapter):
    expert = open_expert(ModelOptions(model_name=str(base), dtype="float32"), Run(Path(adapter)), "", "torch")
    with expert.weights(Voice.TUNED) as model:
        return logits(model)


@llama_files.needs_llama
@pytest.mark.parametrize("to", ["merged", "gguf", "lora-gguf", "ollama"])
@pytest.mark.usefixtures("server")
def test_every_form_answers_like_the_adapter(based, tmp_path, to):
    _architecture, base, adapter = based
    made = exported(base, adapter, tmp_path / to, to, quant="f16", merged_dtype="float32")
    assert made.parity is not None
    assert made.parity.passed
    assert made.parity.largest_lead < 0.1
    assert made.parity.drift is None or made.parity.drift < 0.02  # llama.cpp tells none for a part of a character
    assert made.parity.tokens > 20
    assert made.parity.template is (None if to == "lora-gguf" else True)
    assert made.served is not None
    assert made.served.passed
    assert made.served.template is True
    assert made.served.chat is True
    assert made.served.largest_lead < 0.1
    assert made.served.tokens > 20
    stored = json.loads((tmp_path / to / "parity.json").read_text(encoding="utf-8"))
    assert stored["largest_lead"] == made.parity.largest_lead
    assert stored["served"]["engine"] == made.served.engine
    assert str(tmp_path / to) in made.hint
    assert not list(tmp_path.glob(".*"))


def test_merged_weights_are_those_of_the_adapter(based, tmp_path):
    _architecture, base, adapter = based
    exported(base, adapter, tmp_path / "m", "merged", merged_dtype="float32", check=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    assert torch.allclose(logits(model), tuned_logits(base, adapter), atol=1e-4)
    assert not list((tmp_path / "m").glob("*.bin"))
    assert str(tmp_path) not in (tmp_path / "m" / "config.json").read_text(encoding="utf-8")


def test_gguf_weights_are_those_of_the_adapter(based, tmp_path):
    _architecture, base, adapter = based
    exported(base, adapter, tmp_path / "g", "gguf", quant="bf16", check=False)
    found = load_gguf(tmp_path / "g" / "model.gguf", torch.float32)
    assert torch.allclose(logits(found.model), tuned_logits(base, adapter), atol=0.3)
    header = read_header(tmp_path / "g" / "model.gguf")
    before = read_header(base)
    assert header.metadata["tokenizer.ggml.tokens"] == before.metadata["tokenizer.ggml.tokens"]
    assert header.text("tokenizer.chat_template") != before.metadata.get("tokenizer.chat_template")
    kinds = {tensor.kind.name for name, tensor in header.tensors.items() if not name.endswith(("norm.weight", "bias"))}
    assert kinds == {"BF16"}


@pytest.mark.parametrize("quant", ["f16", "q8_0"])
def test_a_directory_becomes_a_file(trained, tmp_path, quant):
    made = export(trained, ExportOptions(to="gguf", quant=quant, export_dir=str(tmp_path / "g")))
    assert made.parity is not None
    assert made.parity.template is True
    assert made.parity.passed
    header = read_header(tmp_path / "g" / "model.gguf")
    assert header.text("general.architecture") == "qwen2"
    assert load_gguf(tmp_path / "g" / "model.gguf", torch.float32).model.config.vocab_size > 0


def test_without_llama_cpp_the_file_is_read_by_torch(based, tmp_path, monkeypatch):
    _architecture, base, adapter = based
    monkeypatch.setattr(parity.llamacpp, "installed", lambda: False)
    made = exported(base, adapter, tmp_path / "g", "gguf", quant="bf16")
    assert made.parity is not None
    assert (made.parity.engine, made.parity.template) == ("torch", True)


def test_several_files_where_one_would_be_too_large(based, tmp_path, monkeypatch):
    monkeypatch.setattr("znatok.export.merge.SHARD", 20_000)
    _architecture, base, adapter = based
    exported(base, adapter, tmp_path / "m", "merged", merged_dtype="float32", check=False)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert len(set(index["weight_map"].values())) > 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    assert torch.allclose(logits(model), tuned_logits(base, adapter), atol=1e-4)


# What must be refused


def spoilt_scale(monkeypatch):
    whole = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: 2 * whole(self, adapter))


def spoilt_weight(monkeypatch):
    def one(expert):
        for name, values in merged_tensors(expert):
            yield name, -values if name == "model.layers.1.self_attn.v_proj.weight" else values

    monkeypatch.setattr("znatok.export.merge.merged_tensors", one)
    monkeypatch.setattr(merged_gguf, "merged_tensors", one)


def spoilt_template(monkeypatch):
    whole = ChatFormat.jinja
    monkeypatch.setattr(ChatFormat, "jinja", lambda self, system: whole(self, system).replace("\n", " "))


@llama_files.needs_llama
@pytest.mark.parametrize("spoil", [spoilt_scale, spoilt_weight, spoilt_template])
@pytest.mark.parametrize("to", ["merged", "gguf"])
def test_what_answers_otherwise_is_refused(based, tmp_path, monkeypatch, spoil, to):
    _architecture, base, adapter = based
    spoil(monkeypatch)
    target = tmp_path / "x"
    with pytest.raises(GateError, match=r"answers otherwise|other tokens"):
        exported(base, adapter, target, to, quant="f16", merged_dtype="float32")
    assert not target.exists()
    assert not list(tmp_path.glob(".*"))


def spoilt_once_served(monkeypatch, spoil):
    whole = roster._InTorch.put_on

    def put_on(self, run):
        whole(self, run)
        spoil(self._model)

    monkeypatch.setattr(roster._InTorch, "put_on", put_on)


def served_scale(monkeypatch):
    def double(model):
        for layer in model.modules():
            if isinstance(layer, Linear):
                layer.scaling["default"] *= 2

    spoilt_once_served(monkeypatch, double)


def served_weight(monkeypatch):
    def turn(model):
        with torch.no_grad():
            model.get_submodule("model.model.layers.1.self_attn.v_proj.lora_B.default").weight.neg_()

    spoilt_once_served(monkeypatch, turn)


def served_template(monkeypatch):
    monkeypatch.setattr(roster, "_chat_of", lambda run: {"system": "Отвечай по-английски."} if run else {})


@pytest.fixture
def outspoken(tmp_path, monkeypatch):
    """Return a run whose adapter says something else than its base, and is sure of it; it is served in float32."""
    _base, runs = serving.write_world(tmp_path / "world", names=("printing",))
    monkeypatch.setattr(roster, "best_for_many", lambda options, _engine: (replace(options, dtype="float32"), "torch"))
    return Run(runs / "printing")


@pytest.mark.usefixtures("server")
def test_a_server_that_answers_alike_lets_an_export_be(outspoken, tmp_path):
    made = export(outspoken, ExportOptions(to="merged", merged_dtype="float32", export_dir=str(tmp_path / "x")))
    assert made.served is not None
    for found in (made.parity, made.served):  # tokens that nobody may say often lead the others here
        assert (found.identical, found.largest_lead, found.template) == (4, 0, True)
        assert found.drift < 1e-4  # the server told how likely its tokens were
    assert (made.parity.limits, made.served.limits) == (parity.FINE, parity.SERVED)
    assert (made.parity.chat, made.served.chat) == (None, True)


@pytest.mark.usefixtures("server")
def test_a_server_says_token_for_token_what_a_chat_says(outspoken, tmp_path, monkeypatch):
    """One spoilt matrix of many was within what int8 may cost; beside a chat in the same numbers nothing is."""
    served_weight(monkeypatch)
    monkeypatch.setattr(module, "SERVED", parity.Limits(math.inf, math.inf))
    with pytest.raises(GateError, match=r"^znatok serve: it says other tokens than a chat with the run"):
        export(outspoken, ExportOptions(to="merged", merged_dtype="float32", export_dir=str(tmp_path / "x")))
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


@pytest.mark.parametrize("spoil", [served_scale, served_weight, served_template])
@pytest.mark.usefixtures("server")
def test_a_server_that_answers_otherwise_stops_an_export(outspoken, tmp_path, monkeypatch, spoil):
    spoil(monkeypatch)
    with pytest.raises(GateError, match=r"^znatok serve: (it answers otherwise|its chat template)") as caught:
        export(outspoken, ExportOptions(to="merged", merged_dtype="float32", export_dir=str(tmp_path / "x")))
    assert "nothing was kept" in str(caught.value)
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("server")
def test_a_server_that_refuses_a_question_is_heard(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "questions_of", lambda _run: ["Что?", " "])
    with pytest.raises(GateError, match=r"znatok serve: it refuses a question: messages: the last one is empty"):
        export(trained, ExportOptions(to="merged", export_dir=str(tmp_path / "x")))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (TimeoutError("timed out"), "timed out"),
        (http.client.RemoteDisconnected("gone"), "gone"),
        (json.JSONDecodeError("no JSON", "Internal Server Error", 0), "no JSON"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.usefixtures("server")
def test_a_server_that_fails_is_not_taken_for_the_disk(trained, tmp_path, monkeypatch, fault, said):
    def post(*_):
        raise fault

    monkeypatch.setattr(api._Client, "_post", post)
    with pytest.raises(GateError, match=f"znatok serve: a question stayed without an answer: {said}.*--check false"):
        export(trained, ExportOptions(to="merged", export_dir=str(tmp_path / "x")))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("server")
def test_a_server_that_does_not_start_is_not_waited_for(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("znatok.serve.server.Server.run", lambda *_, **_options: None)
    with pytest.raises(GateError, match="znatok serve: it does not start"):
        export(trained, ExportOptions(to="merged", export_dir=str(tmp_path / "x")))


@pytest.mark.usefixtures("server")
def test_a_server_reads_the_longest_question(trained, tmp_path, monkeypatch):
    opened = []
    whole = roster.open_roster
    monkeypatch.setattr(roster, "open_roster", lambda *args, **more: opened.append(more) or whole(*args, **more))
    monkeypatch.setattr(api, "ServeOptions", lambda: ServeOptions(context=64))
    monkeypatch.setattr(module, "questions_of", lambda _run: ["Что? " * 60])
    export(trained, ExportOptions(to="merged", export_dir=str(tmp_path / "x")))
    assert opened[0]["context"] > 64 + 60


def test_what_may_never_be_said_is_no_near_tie():
    model, chat = tiny.tiny_model(), choose_format(tiny.tiny_tokenizer(), torch.eye(512), "chatml")
    may = sorted(sayable(chat))
    found = parity.reading(model, [5, 9, 40], [may[7], 1], may)  # 1 opens a message
    assert 0 <= found.leads[0] < math.inf == found.leads[1]
    assert all(math.isfinite(value) for value in found.logprobs)


def test_without_a_server_the_export_alone_is_asked(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(api, "installed", lambda: False)
    made = export(trained, ExportOptions(to="merged", export_dir=str(tmp_path / "x")))
    assert made.parity is not None
    assert made.served is None
    assert "pip install 'znatok[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "lead"),
    [
        ({"to": "gguf", "quant": "q8_0"}, 0.5),
        ({"to": "gguf", "quant": "q4_k_m"}, 1.0),
        ({"to": "ollama", "quant": "q4_k_m"}, 1.0),
        ({"to": "merged", "quant": "q4_k_m"}, 0.5),  # which has no use for it
    ],
)
def test_four_bits_may_answer_a_little_less_alike(options, lead):
    limits = module.limits_of(ExportOptions(**options))
    assert limits == parity.Limits(lead=lead, drift=0.05)
    found = parity.Parity("torch", 8, 7, 256, 250, largest_lead=0.7, drift=0.03, template=True, limits=limits)
    assert found.passed is (lead > 0.7)
    assert replace(found, largest_lead=0.1, drift=0.06).passed is False


def test_a_spoilt_modelfile_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(ollama, "CHATML", ollama.CHATML.replace("<|im_end|>\n", "<|im_end|>"))
    monkeypatch.setattr(ollama, "PLAIN", ollama.PLAIN.replace("### User", "## User"))
    with pytest.raises(GateError, match="other tokens"):
        export(trained, ExportOptions(to="ollama", quant="f16", export_dir=str(tmp_path / "x")))


def test_places_in_use_are_left_alone(trained, tmp_path):
    target = tmp_path / "x"
    options = ExportOptions(to="gguf", export_dir=str(target), check=False)
    export(trained, options)
    with pytest.raises(UsageError, match="not empty"):
        export(trained, options)
    export(trained, replace(options, force=True))
    (target / "диссертация.docx").write_bytes(b"mine")
    with pytest.raises(UsageError, match="nothing znatok exported"):
        export(trained, replace(options, force=True))
    assert (target / "диссертация.docx").read_bytes() == b"mine"
    with pytest.raises(UsageError, match="a file stands there"):
        export(trained, replace(options, export_dir=str(target / "model.gguf")))


def test_a_full_disk_is_seen_beforehand(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 10})())
    for to in ("merged", "gguf", "ollama"):
        with pytest.raises(SystemFault, match="are needed"):
            export(trained, ExportOptions(to=to, export_dir=str(tmp_path / "x")))
    assert not list(tmp_path.iterdir())


def test_an_adapter_alone_needs_a_base_in_a_file(trained, tmp_path):
    with pytest.raises(UsageError, match="is a directory"):
        export(trained, ExportOptions(to="lora-gguf", export_dir=str(tmp_path / "x")))


def test_a_disk_that_fills_up_is_said_and_nothing_is_left(based, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("znatok.export.merge.save_file", full)
    _architecture, base, adapter = based
    with pytest.raises(SystemFault, match="can't be written: I/O error: No space left"):
        exported(base, adapter, tmp_path / "x", "merged")
    assert not list(tmp_path.iterdir())


def test_values_too_large_for_half_precision_are_refused(based, tmp_path, monkeypatch):
    def large(expert):
        for name, values in merged_tensors(expert):
            yield name, values * 1e6 if name == "model.norm.weight" else values

    monkeypatch.setattr("znatok.export.merge.merged_tensors", large)
    _architecture, base, adapter = based
    with pytest.raises(UsageError, match=r"--merged_dtype float16: model.norm.weight holds values too large"):
        exported(base, adapter, tmp_path / "x", "merged", merged_dtype="float16", check=False)


@pytest.mark.parametrize("to", ["merged", "gguf"])
def test_an_export_tells_no_path_of_this_machine(trained, tmp_path, tiny_dir, to):
    export(trained, ExportOptions(to=to, export_dir=str(tmp_path / "x"), check=False))
    for path in (tmp_path / "x").iterdir():
        assert str(tiny_dir.parent).encode() not in path.read_bytes(), path.name


def test_float16_refuses_what_it_cannot_hold():
    with pytest.raises(UsageError, match="too large for float16"):
        as_stored(torch.tensor([[1e6] * 32]), gguf.GGMLQuantizationType.F16, "blk.0.ffn_up.weight")


# Ollama


def formats(architecture, tmp_path):
    header = read_header(llama_files.write_base(tmp_path, architecture))
    tokenizer = load_gguf(header.path, torch.float32).tokenizer
    for name in ("chatml", "plain"):
        if name == "plain" or architecture != "gemma3":
            yield tokenizer, choose_format(tokenizer, torch.eye(tokenizer.vocab_size + 64), name)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
@pytest.mark.parametrize("system", ["Ты знаток.\nКратко.", ""])
def test_a_modelfile_renders_what_was_trained(architecture, tmp_path, system):
    for tokenizer, chat in formats(architecture, tmp_path):
        text = modelfile(chat, system, "model.gguf")
        opening = [Message(Role.SYSTEM, system)] if system else []
        ids = tokenizer(rendered(text, DIALOGUE), add_special_tokens=False)["input_ids"]
        assert ids == chat.prompt_ids([*opening, *DIALOGUE]), chat.name
        assert text.startswith("FROM ./model.gguf\n")
        names = tokenizer.convert_ids_to_tokens(sorted(chat.stop_ids))
        assert re.findall(r'^PARAMETER stop "(.*)"$', text, re.MULTILINE) == names  # Ollama unescapes nothing


def test_a_modelfile_says_all_of_how_the_chat_draws(tmp_path):
    """It left top_k, penalties and length to Ollama, which took its own: 40 tokens, 1.1 in older releases, no end."""
    (_tokenizer, chat), *_others = formats("qwen2", tmp_path)
    text = modelfile(chat, "", "model.gguf")
    said = dict(re.findall(r"^PARAMETER (?!stop)(\w+) (\S+)$", text, re.MULTILINE))
    assert set(ollama.PARAMETERS) == {field.name for field in dataclasses.fields(SampleOptions)}, (
        "a new field needs one"
    )
    ours = {ollama.PARAMETERS[name]: str(value) for name, value in dataclasses.asdict(SampleOptions()).items()}
    assert said == {**ours, "min_p": "0", "num_ctx": "4096"}
    assert (said["top_k"], said["repeat_penalty"], said["num_predict"]) == ("0", "1.0", "256")


def test_a_system_message_cannot_leave_its_quotes(tmp_path):
    (_tokenizer, chat), *_others = formats("qwen2", tmp_path)
    for system in ('a """\nFROM /etc/passwd', 'ends with "'):
        with pytest.raises(ModelError, match="can't quote"):
            modelfile(chat, system, "model.gguf")


def test_what_a_template_says_is_checked():
    with pytest.raises(ModelError, match="no TEMPLATE"):
        rendered("FROM ./x\n", DIALOGUE)
    with pytest.raises(ModelError, match="can't check"):
        rendered('TEMPLATE """{{ if .Tools }}x{{ end }}"""\n', DIALOGUE)


def test_the_verb(trained, tmp_path, capsys):
    words = ["export", str(trained.path), "--to", "merged", "--export_dir", str(tmp_path / "m"), "--json"]
    assert main(words) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["parity"]["template"] is True
    assert AutoTokenizer.from_pretrained(tmp_path / "m").chat_template
    assert main(words) == 2


# For others: card and hub


PROOF = "<!-- proof:start -->\n| P1 | +0.3 | shown |\n<!-- proof:end -->"


@pytest.fixture
def publishable(trained, tmp_path):
    """Return a run on a base that others can load too."""
    run = Run(shutil.copytree(trained.path, tmp_path / "mine"))
    config = run.path / "adapter_config.json"
    stated = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": "Qwen/Qwen2.5-1.5B"}
    config.write_text(json.dumps(stated), encoding="utf-8")
    return run


def test_a_card_says_what_it_is_made_of_and_loads_in_peft(publishable, tiny_dir, tmp_path):
    made = export(publishable, ExportOptions(to="card", export_dir=str(tmp_path / "card")))
    text = (made.path / "README.md").read_text(encoding="utf-8")
    manifest = publishable.read_manifest()
    header = ModelCard(text).data
    assert (header.base_model, header.library_name, header.eval_results) == ("Qwen/Qwen2.5-1.5B", "peft", None)
    for value in (
        manifest["base"]["sha256"],
        manifest["data"]["sha256"],
        "| learning_rate | 0.05 |",
        "nothing is claimed",
    ):
        assert value in text
    assert (made.path / "adapter_model.safetensors").read_bytes() == helpers.adapter_bytes(publishable)
    again = open_expert(ModelOptions(model_name=str(tiny_dir), dtype="float32"), Run(made.path), "", "torch")
    with again.weights(Voice.TUNED) as model:
        assert torch.equal(logits(model), tuned_logits(tiny_dir, publishable.path))
    assert str(tmp_path) not in "".join(
        path.read_text(encoding="utf-8") for path in made.path.iterdir() if path.suffix != ".safetensors"
    )
    assert {path.name for path in made.path.iterdir()} <= {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", module.MARK,
    }  # fmt: skip


def test_what_was_measured_goes_along(publishable, tmp_path):
    result = EvalResult("text-generation", "znatok", "items", "p1", 0.3)
    data = ModelCardData(model_name="mine", eval_results=[result])
    (publishable.path / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{PROOF}\n", encoding="utf-8")
    made = export(publishable, ExportOptions(to="card", export_dir=str(tmp_path / "card")))
    found = ModelCard.load(made.path / "README.md")
    assert PROOF in found.text
    assert [one.metric_value for one in found.data.eval_results] == [0.3]
    assert "nothing is claimed" not in found.text


def test_a_base_that_is_a_path_can_not_be_published(trained, tmp_path):
    with pytest.raises(ModelError, match="which others can't load"):
        export(trained, ExportOptions(to="card", export_dir=str(tmp_path / "card")))
    assert not (tmp_path / "card").exists()


def test_a_text_that_tells_a_path_is_not_published(publishable, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "somebody"))
    config = publishable.path / "tokenizer_config.json"
    config.write_text(json.dumps({"name_or_path": str(tmp_path / "somebody" / "models")}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: it tells .*somebody"):
        export(publishable, ExportOptions(to="card", export_dir=str(tmp_path / "card")))


class Hub:
    """Stands for the hub: keeps what it is told."""

    said: ClassVar[list[tuple[str, dict[str, object]]]] = []
    fails = ""

    def __init__(self, **_options):
        self.said.clear()

    def create_repo(self, name, **options):
        if self.fails:
            raise OSError(self.fails)
        self.said.append((name, options))

    def upload_folder(self, **options):
        self.said.append(
            ("upload", options | {"files": sorted(path.name for path in options["folder_path"].iterdir())})
        )


@pytest.mark.parametrize("public", [False, True])
def test_the_hub_gets_the_folder_private_unless_told_otherwise(publishable, tmp_path, monkeypatch, public):
    monkeypatch.setattr("znatok.export.card.HfApi", Hub)
    options = ExportOptions(to="hub", hub_name="me/mine", public=public, export_dir=str(tmp_path / "hub"))
    made = export(publishable, options)
    (name, created), (_upload, sent) = Hub.said
    assert (name, created["private"]) == ("me/mine", not public)
    assert sent["repo_id"] == "me/mine"
    assert sent["files"] == sorted(path.name for path in made.path.iterdir())
    goes = set(filter_repo_objects(sent["files"], ignore_patterns=sent["ignore_patterns"]))
    assert set(sent["files"]) - goes == {module.MARK}
    assert made.hint == "https://huggingface.co/me/mine"


def test_a_hub_that_refuses_is_one_line(publishable, tmp_path, monkeypatch):
    monkeypatch.setattr("znatok.export.card.HfApi", Hub)
    monkeypatch.setattr(Hub, "fails", "401 Client Error:\n  who are you?")
    options = ExportOptions(to="hub", hub_name="me/mine", export_dir=str(tmp_path / "hub"))
    with pytest.raises(SystemFault, match=r"the hub: 401 Client Error: who are you\?; log in") as caught:
        export(publishable, options)
    assert "\n" not in str(caught.value)
    for name in ("", "mine", "a/b/c", "../x", "me/мой"):
        with pytest.raises(UsageError, match="expected user/name"):
            export(publishable, replace(options, hub_name=name, export_dir=str(tmp_path / "other")))

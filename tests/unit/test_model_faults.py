"""Models and adapters with a fault, by the commands users give: one line, exit 4, and nothing is left behind."""

import contextlib
import io
import json
import shutil
import socket
import threading
import time

import huggingface_hub
import pytest
import safetensors.torch
import torch

import helpers
import tiny
from znatok.cli import main
from znatok.errors import ModelError
from znatok.model import source

TRAP = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Model: pass\n"


@pytest.fixture
def base(tiny_dir, tmp_path, monkeypatch):
    """Return a copy of the tiny model, to be spoilt."""
    monkeypatch.setenv("ZNATOK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return shutil.copytree(tiny_dir, tmp_path / "base")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def flip(path):
    """Flip one bit of the last weight."""
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def code_of_its_own(base):
    (base / "evil.py").write_text(TRAP, encoding="utf-8")
    edit(base / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})


def pickle_only(base):
    torch.save({"x": torch.ones(1)}, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()


def cut(base):
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def foreign_tokenizer(base):
    tiny.tiny_model(vocab_size=300).save_pretrained(base)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (code_of_its_own, r"config.json asks to run code from the model (auto_map)"),
        (
            lambda base: edit(base / "config.json", architectures=["GPT2LMHeadModel"]),
            "architecture ['GPT2LMHeadModel']",
        ),
        (lambda base: edit(base / "config.json", num_hidden_layers=10**9), "config.json says num_hidden_layers 10000"),
        (lambda base: edit(base / "config.json", vocab_size=2**62), "config.json says vocab_size 46116"),
        (pickle_only, "its weights are pickles (pytorch_model.bin)"),
        (cut, "model.safetensors: damaged: "),
        (foreign_tokenizer, "the embedding has 300 rows"),
    ],
)
def test_a_base_that_can_not_be_trained_is_one_line_and_no_run(base, tmp_path, capsys, spoil, said):
    spoil(base)
    data = tiny.write_pairs(tmp_path / "pairs.jsonl")
    words = ["--model_name", str(base), "--data_path", str(data), "--output_dir", str(tmp_path / "run")]
    assert main(["train", *words, "--dtype", "float32"]) == 4
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if str(base) in line and not line.startswith("loading ")]
    assert said in line
    assert "Traceback" not in captured.err
    assert not (base / "ran").exists()
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.fixture(scope="module")
def trained(tiny_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return helpers.trained(tiny_dir, tiny.write_pairs(folder / "pairs.jsonl"), folder / "run", num_train_epochs=1)


def ask(base, run):
    return main(["ask", "Что?", "--model_name", str(base), "--model_dir", str(run), "--max_new_tokens", "1"])


def test_one_flipped_bit_in_the_base_is_another_base(base, trained, capsys):
    assert ask(base, trained.path) == 0
    flip(base / "model.safetensors")
    capsys.readouterr()
    assert ask(base, trained.path) == 4
    assert "their weights differ; use the base it was trained on" in capsys.readouterr().err


def not_a_number(path):
    tensors = safetensors.torch.load_file(path)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    safetensors.torch.save_file(tensors, path)


@pytest.mark.parametrize(
    ("config", "weights", "said"),
    [
        ({"peft_type": "IA3"}, None, "peft_type IA3; expected LORA"),
        ({"use_new_method": {"x": 1}}, None, "use_new_method is set; expected a plain LoRA adapter"),
        ({"r": 10**9}, None, "r is 1000000000"),
        ({}, lambda path: path.write_bytes(b"\0" * 100), "adapter_model.safetensors: damaged: 100 bytes"),
        ({}, not_a_number, "holds NaN or infinity"),
        ({"target_modules": ["q_proj"]}, None, "has no place in it"),
    ],
)
def test_an_adapter_with_a_fault_is_one_line_before_a_word_is_said(
    base, trained, tmp_path, capsys, config, weights, said
):
    run = shutil.copytree(trained.path, tmp_path / "run")
    edit(run / "adapter_config.json", **config)
    if weights:
        weights(run / "adapter_model.safetensors")
    assert ask(base, run) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if str(run) in line]
    assert said in line


# The hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Let the hub be a socket that does with each connection what the returned function is told to do."""
    asked = []
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")

    def serve(answer):
        while True:
            try:
                connection, _address = listener.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(1 << 16).split(b" ")[1].decode())
                answer(connection)

    def start(answer):
        if answer is None:
            listener.close()
        else:
            threading.Thread(target=serve, args=(answer,), daemon=True).start()
        return asked

    yield start
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
    listener.close()


def refusal(status):
    """Return a whole answer of that status, after which the client must not ask again over the same connection."""
    return f"HTTP/1.1 {status} No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "Connection refused"),
        (lambda connection: connection.recv(1), "timed out"),  # says nothing until the other one hangs up
        (lambda connection: None, "disconnected|reset"),
        (lambda connection: connection.sendall(refusal(503)), "503"),
        (lambda connection: connection.sendall(refusal(404)), "404"),
    ],
    ids=["refused", "silent", "hangs up", "broken", "unknown"],
)
def test_a_hub_that_gives_nothing_is_one_line_without_a_storm_of_requests(hub, monkeypatch, answer, why):
    if why == "timed out":
        monkeypatch.setattr(source, "HUB_SECONDS", 0.3)
    asked = hub(answer)
    began = time.monotonic()
    with pytest.raises(ModelError, match=rf"org/Tiny-1B: can't be had from the hub: .*({why})") as caught:
        source.resolve("org/Tiny-1B")
    assert "hf download org/Tiny-1B" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(asked) <= 2, asked
    assert time.monotonic() - began < 60


def test_what_is_in_the_hubs_cache_needs_no_hub(hub, tiny_dir, tmp_path):
    hub(None)
    revision = "c0ffee" + "0" * 34
    folder = tmp_path / "hub" / "models--org--Tiny-1B"
    shutil.copytree(tiny_dir, folder / "snapshots" / revision)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision, encoding="utf-8")
    found = source.resolve("org/Tiny-1B")
    assert (found.kind, found.revision) == ("hub", revision)

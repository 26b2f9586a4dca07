"""Chat and comparison with llama.cpp answering: processes on a tiny GGUF file, and both engines on real weights."""

import subprocess
import sys

import pytest

import helpers
import llama_files
import tiny
from znatok.config import LANGUAGE_NEUTRAL_SYSTEM, ModelOptions, SampleOptions
from znatok.eval.compare import compare, plan_comparison
from znatok.expert import Voice, open_expert
from znatok.files import read_json, read_jsonl
from znatok.generate.engine import Request
from znatok.tokens.chat import dialogue

pytestmark = llama_files.needs_llama
MARGIN = 0.4
"""Logits by which torch may be beaten on real weights: llama.cpp rounds activations to 8 bits, torch does not. Measured
over 10 prompts of 32 tokens (benchmarks/parity.py): 0.16 at most."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base as a GGUF file and a run trained on it."""
    folder = tmp_path_factory.mktemp("place")
    base = llama_files.write_base(folder, max_position_embeddings=1024)
    data = tiny.write_pairs(folder / "pairs.jsonl")
    helpers.trained(base, data, folder / "run", learning_rate=0.02, data_options={"val_share": 0.3, "system": "12"})
    return folder


def chatting(place, *words, stdin="12 the\n", **changes):
    words = ["--model_name", "qwen2.gguf", *words, "--max_new_tokens", "12"]
    home = {"ZNATOK_HOME": str(place / "cache"), "COLUMNS": "300"}
    return helpers.script("chatting.py", *words, cwd=place, stdin=stdin, **home, **changes)


def test_both_engines_answer_piped_questions_and_say_who_they_are(place):
    done = {}
    for engine in ("llamacpp", "auto", "torch"):
        words = ["--engine", engine, "--model_dir", "run", "--temperature", "0"]
        done[engine] = chatting(place, *words, stdin="12 the\n/base\nthe 12\n/compare the\n")
        assert done[engine].returncode == 0, done[engine].stderr
    assert done["auto"].stdout == done["llamacpp"].stdout
    assert done["llamacpp"].stderr == "qwen2.gguf, run, F32, cpu, engine llamacpp, seed: 42\nnow speaking: base\n"
    assert done["torch"].stderr.endswith("engine torch, seed: 42\nnow speaking: base\n")
    assert done["llamacpp"].stdout.count("\n") == done["torch"].stdout.count("\n")
    assert "[base] " in done["llamacpp"].stdout
    assert len(list((place / "cache" / "lora").iterdir())) == 1


def test_asked_for_where_it_does_not_fit_it_is_one_line_of_error(place):
    done = chatting(place, "--engine", "llamacpp", "--dtype", "float32")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --engine llamacpp: --dtype float32 is for torch\n"


def test_without_the_extra_auto_takes_torch_and_asking_names_the_remedy(place):
    code = (
        "import sys; sys.modules['xllamacpp'] = None\n"
        "from importlib import util; real = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'xllamacpp' else real(name, *rest)\n"
        "from znatok.scripts import chat_main; sys.exit(chat_main(sys.argv[1:]))"
    )
    for engine, wanted in (("auto", 0), ("llamacpp", 5)):
        command = [sys.executable, "-c", code, "--model_name", "qwen2.gguf", "--engine", engine]
        environment = helpers.environment(ZNATOK_HOME=str(place / "cache"), COLUMNS="300")
        done = subprocess.run(
            command, cwd=place, env=environment, input="", capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == wanted, done.stderr
        assert "it is not installed: pip install 'znatok[llamacpp]'" in done.stderr


def test_a_comparison_takes_answers_from_llama_cpp_and_losses_from_torch(place, monkeypatch):
    monkeypatch.setenv("ZNATOK_HOME", str(place / "cache"))
    run = helpers.Run(place / "run")
    what = plan_comparison(run, None, None, asked=2, sample=SampleOptions(max_new_tokens=6), seed=42)
    losses = {}
    for engine in ("torch", "llamacpp"):
        expert = open_expert(ModelOptions(model_name=""), run, "", engine)
        compare(expert, run, what)
        summary = read_json(run.compare / "summary.json")
        assert summary["run"]["engine"] == engine
        (losses[engine],) = [row for row in summary["rows"] if row["key"] == "loss"]
        assert f"{engine}\n" in (run.compare / "дообученная модель.txt").read_text(encoding="utf-8")
        assert len(read_jsonl(run.compare / "answers.jsonl")) == 4
    assert losses["torch"] == losses["llamacpp"]


@pytest.mark.real("smollm2-135m-instruct")
def test_on_real_weights_the_engines_say_the_same_but_for_near_ties():
    name, asked = "smollm2-135m-instruct", []
    for question in (tiny.REPO / "data" / "eval" / "questions.txt").read_text(encoding="utf-8").splitlines():
        sample = SampleOptions(temperature=0, max_new_tokens=32)
        asked.append(Request(tuple(dialogue(question, LANGUAGE_NEUTRAL_SYSTEM)), sample))
    fast = open_expert(ModelOptions(model_name=name), None, "", "llamacpp")
    exact = open_expert(ModelOptions(model_name=name, dtype="float32"), None, "", "torch")
    with fast.speaking(Voice.BASE) as engine, exact.speaking(Voice.BASE) as reference:
        for one, said in zip(asked, llama_files.said(engine, *asked), strict=True):
            behind = llama_files.shortfalls(reference, one, said)
            assert max(behind) < MARGIN
            assert sum(margin > 0 for margin in behind) <= 3
        assert llama_files.said(engine, asked[0]) == [llama_files.said(engine, *asked[::-1])[-1]]

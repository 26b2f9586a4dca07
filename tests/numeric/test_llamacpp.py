"""The llama.cpp engine against the torch engine, and against itself in other company."""

import itertools
import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

import gguf_files
import llama_files
from llama_files import needs_llama, opened, request, said, shortfalls, write_adapter, write_base
from znatok.config import SampleOptions
from znatok.errors import ModelError, UsageError
from znatok.generate import llamacpp
from znatok.generate.engine import Stop
from znatok.generate.llamacpp import LlamaCppEngine, LlamaServer, options, step_seed
from znatok.generate.sampling import draw
from znatok.generate.torch_engine import TorchEngine
from znatok.model.gguf_header import read_header
from znatok.model.lora_gguf import write_lora_gguf
from znatok.tokens.chat import dialogue

pytestmark = needs_llama

QUESTIONS = ["12 the", "the 12", "th the th", "1212", "пи", "the the the the 12"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny base, its adapter as LoRA-GGUF, and the base in torch."""
    folder = tmp_path_factory.mktemp("llamacpp")
    base = write_base(folder)
    adapter = write_adapter(folder / "adapter", base)
    write_lora_gguf(adapter, folder / "lora.gguf", read_header(base))
    return base, folder / "lora.gguf"


@pytest.fixture(scope="module")
def voices(place):
    """Both voices of one server."""
    server, base, tuned = opened(*place)
    yield base, tuned
    server.close()


@pytest.fixture(scope="module")
def torch_engine(place, voices):
    return TorchEngine(llama_files.loaded(place[0]).model, voices[0]._chat)


def requests(**sample):
    return [request(question, seed, **sample) for seed, question in enumerate(QUESTIONS)]


# Against the torch engine


@pytest.mark.parametrize(
    "penalty",
    [
        {},
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.7},
        {"frequency_penalty": 1.0},
        {"presence_penalty": -1.5},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.4},
    ],
    ids=str,
)
def test_greedy_answers_are_torchs_token_by_token_with_any_penalty(voices, torch_engine, penalty):
    """The penalties count what was said and nothing of the prompt; llama.cpp's own would count both."""
    asked = requests(**penalty)
    for one, tokens in zip(asked, said(voices[0], *asked), strict=True):
        assert max(shortfalls(torch_engine, one, tokens)) < 0.02


@pytest.mark.parametrize(
    "sample",
    [
        {"temperature": 0.7},
        {"temperature": 2.0, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 5, "top_p": 0.7},
        {"temperature": 0.5, "top_p": 0.3},
    ],
    ids=str,
)
def test_tokens_are_drawn_from_torchs_distribution(voices, torch_engine, sample):
    """The first token, drawn 400 times by each: the sum of differences of shares stays within chance."""
    n, generator = 400, torch.Generator().manual_seed(1)
    ids = torch.tensor([voices[0]._chat.prompt_ids(request("12 the").messages)])
    with torch.no_grad():
        logits_V = torch_engine._model(input_ids=ids).logits[0, -1]
    logits_V = logits_V.masked_fill(torch_engine._banned_V, -torch.inf)
    wanted = Counter(draw(logits_V.clone(), SampleOptions(**sample), [], generator) for _ in range(n))
    found = Counter(said(voices[0], request("12 the", seed, max_new_tokens=1, **sample))[0][0] for seed in range(n))
    distance = sum(abs(wanted[token] - found[token]) for token in wanted | found) / n
    kinds = len(wanted | found)
    assert distance < 2.2 * (kinds / n) ** 0.5  # two samples of one distribution differ by 1.13 times this at most
    if "top_k" in sample:
        assert kinds <= 5


def test_what_must_never_be_said_is_what_torch_never_says(voices, torch_engine):
    banned = {token for token, _bias in voices[0]._fixed["logit_bias"]}
    assert banned == set(torch_engine._banned_V.nonzero()[:, 0].tolist())
    assert {1} | set(range(len(gguf_files.byte_tokens()), 320)) <= banned
    hot = said(voices[0], *[request("12 the", seed, temperature=5.0) for seed in range(20)])
    assert not banned & set(itertools.chain(*hot))


# Alone and in company


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_neither_company_nor_order_nor_the_past_changes_an_answer(voices, temperature):
    asked = requests(temperature=temperature, repetition_penalty=1.2)
    for voice in voices:
        alone = [said(voice, one)[0] for one in asked]
        assert said(voice, *asked) == alone
        assert said(voice, *asked[::-1]) == alone[::-1]
        assert len({tuple(one) for one in alone}) > 3


def test_the_two_voices_take_turns_without_a_trace(voices):
    asked = requests(temperature=0.8)
    base, tuned = ([said(voice, one)[0] for one in asked] for voice in voices)
    assert base != tuned
    for n, one in enumerate(asked):
        assert said(voices[0], one)[0] == base[n]
        assert said(voices[1], one)[0] == tuned[n]


def test_two_answers_in_progress_do_not_disturb_one_another(voices):
    one, other = request("12 the", temperature=0.9), request("the 12", temperature=0.9)
    wanted = said(voices[0], one)[0], said(voices[1], other)[0]
    pairs = itertools.zip_longest(voices[0].tokens([one]), voices[1].tokens([other]))
    found = ([], [])
    for pair in pairs:
        for place, token in enumerate(pair):
            if token:
                found[place].append(token[1])
    assert found == wanted


def test_a_new_process_says_the_same(place, voices):
    asked = requests(temperature=0.9)
    server, again, _tuned = opened(*place)
    assert said(again, *asked) == said(voices[0], *asked)
    server.close()


def test_the_seed_decides_the_answer(voices):
    asked = [request("12 the", seed, temperature=1.5) for seed in (0, 0, 1, 2, 2**63 - 1)]
    found = said(voices[0], *asked)
    assert found[0] == found[1]
    assert len({tuple(one) for one in found}) == 4


def test_llama_cpps_own_random_seed_never_comes_out():
    seeds = {step_seed(seed, step) for seed in (0, 1, 42, 2**63 - 1) for step in range(100)}
    assert len(seeds) == 400
    assert max(seeds) < 2**32 - 1


# Text


def test_streamed_and_batched_answers_are_the_same_text(voices):
    asked = requests(temperature=1.2)
    heard = {}
    answers = voices[1].answers(asked, lambda index, answer: heard.update({index: answer}))
    assert [heard[index] for index in range(len(asked))] == answers
    for one, answer in zip(asked, answers, strict=True):
        assert "".join(voices[1].stream(one)).strip() == answer.text
        tokens = said(voices[1], one)[0]
        assert answer.tokens == len(tokens)
        assert answer.stop == (Stop.END if tokens[-1] in {0, 2} else Stop.LENGTH)


@pytest.mark.parametrize("end", [0, 2])
def test_every_end_token_ends_the_answer_and_is_no_text(voices, end, monkeypatch):
    monkeypatch.setitem(voices[0]._fixed, "logit_bias", [[end, 1000.0]])
    (answer,) = voices[0].answers([request()])
    assert (answer.text, answer.tokens, answer.stop) == ("", 1, Stop.END)


class Script:
    """Stands in for a server: says these tokens one after another."""

    adapters = ()

    def __init__(self, tokens):
        self.tokens = iter(tokens)

    def reserve(self, _tokens):
        pass

    def begin(self):
        return 1

    def holds(self, _run):
        return True

    def ask(self, _order, _run):
        return {"tokens": [next(self.tokens)]}


@pytest.mark.parametrize("limit", range(1, 9))
def test_half_a_character_at_the_limit_is_not_shown(voices, limit):
    chat = voices[0]._chat
    vocabulary = chat.tokenizer.get_vocab()
    spelled = gguf_files.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ids = [vocabulary[c] for c in spelled.pre_tokenize_str("щ🦔ё")[0][0]]
    whole = ids[:limit]
    while whole and chat.tokenizer.decode(whole).endswith("�"):
        whole.pop()
    asked = request(max_new_tokens=limit)
    for read in (lambda engine: engine.answers([asked])[0].text, lambda engine: "".join(engine.stream(asked))):
        engine = LlamaCppEngine(Script(ids), chat, 128, [], adapter=None)
        assert read(engine) == chat.tokenizer.decode(whole)


# Limits and accidents


def test_a_dialogue_longer_than_the_context_is_refused_with_its_length(voices):
    length = len(voices[0]._chat.prompt_ids(request("12 the " * 60).messages))
    with pytest.raises(UsageError, match=f"the dialogue takes {length} tokens and the model sees 128"):
        voices[0].answers([request(), request("12 the " * 60)])
    assert voices[0].answers([request()])[0].text


def test_an_answer_ends_where_the_context_does(voices, torch_engine):
    """To the last place: the torch engine says as many tokens."""
    for spare in (1, 2, 5):
        question = next(
            text
            for text in ("1" * n for n in range(200))
            if len(voices[0]._chat.prompt_ids(dialogue(text))) == 128 - spare
        )
        asked = request(question, max_new_tokens=50)
        (found,) = said(voices[0], asked)
        assert len(found) == len(said(torch_engine, asked)[0]) == spare
        assert max(shortfalls(torch_engine, asked, found)) < 0.02


def test_more_room_changes_no_answer(place, voices, monkeypatch):
    asked = requests(temperature=0.9)
    monkeypatch.setattr(llamacpp, "CONTEXT", 64)
    server, engine, _tuned = opened(*place)
    wanted = said(voices[0], *asked)
    assert said(engine, *asked) == wanted
    first = server._process.pid
    long = request("12 the 12", max_new_tokens=100, temperature=0.9)
    assert said(engine, long) == said(voices[0], long)
    assert server._process.pid != first
    assert said(engine, *asked) == wanted
    server.close()


def test_an_answer_that_is_given_up_is_no_burden(voices):
    whole = "".join(voices[0].stream(request()))
    pieces = voices[0].stream(request())
    next(pieces)
    pieces.close()
    assert "".join(voices[0].stream(request())) == whole


def test_ctrl_c_stops_an_answer_and_leaves_the_engine_usable(voices, monkeypatch):
    """The signal comes while a reply is awaited; that reply must not be taken for the next one."""
    engine, server = voices[0], voices[0]._server
    wanted = said(engine, request())
    receive, count = server._receive, itertools.count()

    def interrupted():
        if next(count) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return receive()

    monkeypatch.setattr(server, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        said(engine, request())
    assert server._owed == 1
    monkeypatch.undo()
    assert said(engine, request()) == wanted
    assert server._process.poll() is None


def test_a_process_that_has_died_is_an_error_of_ours(place):
    server, engine, _tuned = opened(*place)
    server.wait()
    server._process.kill()
    server._process.wait()
    with pytest.raises(ModelError, match=r"llama\.cpp can't go on: its process has ended; answer with --engine torch"):
        engine.answers([request()])
    server.close()


def test_what_llama_cpp_says_of_a_bad_file_is_in_the_error(place, tmp_path, capfd):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    for model, adapter in ((tmp_path / "bad.gguf", None), (place[0], tmp_path / "bad.gguf")):
        server = LlamaServer(model, [adapter] if adapter else [], 128)
        with pytest.raises(ModelError, match=r"llama\.cpp can't go on: .*(version|magic|gguf|header)"):
            server.wait()
        server.close()
    assert capfd.readouterr() == ("", "")


def test_a_reason_that_comes_after_the_news_of_the_end_is_waited_for(tmp_path, monkeypatch):
    """llama.cpp's log is written by a thread of its own, which one time in many was late."""
    late = 'import sys, time; print(\'{"error": ""}\', flush=True); time.sleep(0.3)'
    (tmp_path / "worker.py").write_text(late + "; sys.exit('0.00.1 E load: wrong magic')", encoding="utf-8")
    monkeypatch.setattr(llamacpp, "WORKER", tmp_path / "worker.py")
    server = LlamaServer(tmp_path / "bad.gguf", [], 128)
    with pytest.raises(ModelError, match=r"llama\.cpp can't go on: wrong magic"):
        server.wait()
    server.close()


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(10000000) %}{% for b in range(10000000) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(x='a') %}{% for a in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
        "{% for broken",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_hostile_template_in_the_file_is_not_even_read(tmp_path, template):
    """At its start llama.cpp renders the template it has: the first would never end, the second take a terabyte."""
    model = gguf_files.write(
        tmp_path / "hostile.gguf", gguf_files.model("qwen2"), metadata={"tokenizer.chat_template": template}
    )
    server, engine, _tuned = opened(model)
    killer = threading.Timer(30, server._process.kill)
    killer.start()
    assert engine.answers([request()])
    killer.cancel()
    server.close()


def test_a_request_llama_cpp_refuses_is_an_error_with_its_reason(voices):
    server = voices[0]._server
    with pytest.raises(ModelError, match="invalid tokens"):
        server.ask({"prompt": [70_000], "n_predict": 1}, server.begin())
    assert voices[0].answers([request()])


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads /proc")
def test_nothing_is_printed_and_nothing_listens(place, capfd):
    server, engine, _tuned = opened(*place)
    engine.answers([request()])
    process = Path("/proc") / str(server._process.pid)
    inodes = {str(fd.readlink())[8:-1] for fd in (process / "fd").iterdir() if "socket:" in str(fd.readlink())}
    assert inodes
    assert not inodes & {line.split()[9] for line in (process / "net" / "tcp").read_text().splitlines()[1:]}
    folder = (process / "fd" / "2").readlink().parent
    assert [path.name for path in folder.iterdir()] == ["log"]  # the socket is gone: nobody can connect
    server.close()
    assert not folder.exists()
    assert capfd.readouterr() == ("", "")


def test_the_process_ends_with_the_object(place):
    server, engine, tuned = opened(*place)
    server.wait()
    process = server._process
    del server, engine, tuned
    assert process.poll() is not None


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
def test_a_step_goes_on_from_the_last_one(tmp_path, architecture):
    """Gemma's window of keys included: reading everything again at each token would be quadratic."""
    server, voice, _tuned = opened(write_base(tmp_path, architecture))
    asked, run = request("аб" * 9), server.begin()
    ids = voice._chat.prompt_ids(asked.messages)
    order = voice._fixed | options(asked.sample, 0) | {"seed": 1}
    first = server.ask(order | {"prompt": ids, "cache_prompt": False}, run)
    second = server.ask(order | {"prompt": ids + first["tokens"], "cache_prompt": True}, run)
    assert (first["cached"], second["cached"]) == (0, len(ids))
    server.close()

"""``znatok serve`` as a process: flags, banner, signals; other programs' clients and suites against it."""

import errno
import json
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest

import helpers
import llama_files
import serving
import tiny
from served import Server
from znatok.config import ModelOptions, ServeOptions
from znatok.errors import SystemFault
from znatok.expert import open_expert
from znatok.generate.engine import Request
from znatok.runs import Run
from znatok.serve.run import allowed_hosts, banner, listen, open_doors
from znatok.tokens.chat import dialogue

EVERYWHERE = "0.0.0.0"  # noqa: S104  # what is tested
MESSAGES = [{"role": "user", "content": "Что такое PLA?"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return serving.write_world(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(world):
    server = Server(world[0].parent, "--model_name", world[0], "--dtype", "float32", "--context", 256)
    yield server
    server.stop()


def test_the_banner_says_what_there_is_and_who_can_reach_it(server):
    said = "".join(server.said)
    assert f"address: {server.url}, this computer only" in said
    assert "models: base, baking, printing" in said  # of ./runs, without being told
    assert "API key: none" in said
    assert "engine: torch, float32" in said


def test_the_line_it_shows_works(server):
    line = (
        server.said[-1] if server.said[-1].startswith("curl") else next(s for s in server.said if s.startswith("curl"))
    )
    done = subprocess.run(
        ["/bin/bash", "-c", line.replace("…", "Да?").strip() + " --silent --show-error"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_answers_end(world, number):
    server = Server(world[0].parent, "--model_name", world[0], "--dtype", "float32", "--context", 512)
    with openai.OpenAI(base_url=server.url, api_key="x", max_retries=0) as client:
        asking = {"model": "printing", "messages": MESSAGES, "max_tokens": 300, "seed": 1}
        stream = client.chat.completions.create(**asking, stream=True)
        first = next(stream)
        stopped = []
        thread = threading.Thread(target=lambda: stopped.append(server.stop(number)))
        thread.start()
        chunks = [first, *stream]
        thread.join()
    assert chunks[-1].choices[0].finish_reason in {"stop", "length"}
    ((code, said),) = stopped
    assert code == 0, said
    assert said.rstrip().endswith("stopped")
    assert "Traceback" not in said


def test_a_second_ctrl_c_gives_up_what_the_first_waited_for(tmp_path):
    base = tiny.save_endless(tmp_path / "endless")
    server = Server(tmp_path, "--model_name", base, "--dtype", "float32", "--context", 32768, "--patience", 3600)
    with openai.OpenAI(base_url=server.url, api_key="x", max_retries=0) as client:
        asking = {"model": "endless", "messages": MESSAGES, "max_tokens": 30000, "temperature": 0}
        stream = client.chat.completions.create(**asking, stream=True)
        next(stream)
        server.process.send_signal(signal.SIGINT)
        serving.wait_until(lambda: not is_open(server.url))
        code, said = server.stop(signal.SIGINT)
        with pytest.raises(openai.APIError, match="the server is stopping"):
            list(stream)
    assert code == 0, said
    assert said.endswith("requests given up unanswered: 1\nstopped\n")
    assert "Traceback" not in said


def is_open(url):
    """Tell whether somebody listens at an address."""
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.socket() as caller:
        return caller.connect_ex((host, int(port))) == 0


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGTERM, -signal.SIGTERM, ""), (signal.SIGINT, 130, "interrupted\n")]
)
def test_a_signal_before_the_models_are_loaded_ends_the_process(world, tmp_path, number, code, said):
    os.mkfifo(tmp_path / "key")  # it is waited for before the models are loaded
    words = ["--port", 0, "--model_name", world[0], "--api_key_file", tmp_path / "key"]
    process = helpers.started("znatok", "serve", *words, cwd=tmp_path)
    writer = os.open(tmp_path / "key", os.O_WRONLY)  # returns once it is being read
    found = helpers.stop(process, number)
    os.close(writer)
    assert found == (code, said)


@pytest.mark.parametrize(
    ("words", "changes", "code", "said"),
    [
        (["--host", EVERYWHERE], {}, 2, "others can reach it, so a key is needed: set ZNATOK_API_KEY"),
        ([], {"ZNATOK_API_KEY": "short"}, 2, "ZNATOK_API_KEY: the key has 5 characters; expected 16 or more"),
        ([], {"ZNATOK_API_KEY": "правильная лошадь"}, 2, "ZNATOK_API_KEY: expected one line of ASCII letters"),
        ([], {"ZNATOK_API_KEY": "correct horse\nbattery"}, 2, "ZNATOK_API_KEY: expected one line of ASCII letters"),
        (["--api_key_file", "nowhere"], {}, 2, "--api_key_file nowhere: can't be read"),
        (["--runs", "nowhere"], {}, 2, "--runs nowhere: no such folder"),
        (["--knowledge", "nowhere.md"], {}, 3, "nowhere.md"),
        (["--queue", "0"], {}, 2, "--queue 0: expected a number in [1, 100000]"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_can_not_be_served_is_said_in_a_line(world, words, changes, code, said):
    done = helpers.script(
        "znatok", "serve", "--port", 0, "--model_name", world[0], *words, cwd=world[0].parent, **changes
    )
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_found_before_the_model_is_loaded(world):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = helpers.script("znatok", "serve", "--port", port, "--model_name", world[0], cwd=world[0].parent)
    assert done.returncode == 5
    assert f"127.0.0.1:{port}: can't listen there (Address already in use); choose another --port" in done.stderr
    assert "loading" not in done.stderr


def test_of_two_servers_that_start_at_once_the_slower_is_told():
    options = ServeOptions(port=0)
    with listen(options) as first:
        port = first.getsockname()[1]
        with listen(ServeOptions(port=port)) as second:  # neither has opened its doors yet
            open_doors(first, options)
            with pytest.raises(SystemFault, match=f"{port}: can't listen there .Address already in use"):
                open_doors(second, ServeOptions(port=port))


def test_a_machine_without_the_addresses_asked_for_says_so(monkeypatch):
    def refused(*_args):
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr("znatok.serve.run.socket.socket", refused)
    with pytest.raises(SystemFault, match=r"::1:0: can't listen there .Address family not supported"):
        listen(ServeOptions(host="::1", port=0))


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.1", "Cannot assign requested address"),  # set aside for documents (RFC 5737)
        ("::zz", "Name or service not known|nodename nor servname"),
        ("ё" * 70, "encoding of hostname failed"),
    ],
)
def test_an_address_that_is_none_of_this_machine_is_told(host, why):
    with pytest.raises(SystemFault, match=f"{host}:0: can't listen there .({why})"):
        listen(ServeOptions(host=host, port=0))


def test_a_port_for_the_administrator_only_is_told():
    first = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if not first.exists() or int(first.read_text(encoding="ascii")) <= 81:
        pytest.skip("everybody may open any port here")
    administrator = os.geteuid() == 0
    if administrator:
        os.seteuid(65534)
    try:
        with pytest.raises(SystemFault, match=r"127.0.0.1:81: can't listen there .Permission denied"):
            listen(ServeOptions(port=81))
    finally:
        if administrator:
            os.seteuid(0)


def test_a_server_on_ipv6_is_called_by_the_address_it_names(world):
    options = ServeOptions(host="::1", port=0)
    try:
        listener = listen(options)
    except SystemFault:
        pytest.skip("no IPv6 on this machine")
    with serving.served(serving.open_service(world[0], None), allowed_hosts(options), listener=listener):
        roster = SimpleNamespace(models={"base": None}, engine="torch", format="float32")
        said = banner(options, roster, listener.getsockname()[1], None)
        url = said[0].removeprefix("address: ").removesuffix(", this computer only")
        with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
            assert url.startswith("http://[::1]:")
            assert [model.id for model in client.models.list()] == ["base"]


def test_a_key_from_a_file_is_asked_for(world, tmp_path):
    (tmp_path / "key").write_text("correct horse battery\n", encoding="utf-8")
    words = ["--model_name", world[0], "--dtype", "float32", "--host", EVERYWHERE, "--api_key_file", tmp_path / "key"]
    server = Server(world[0].parent, *words)
    try:
        assert "reachable from the network" in "".join(server.said)
        assert "API key: needed" in "".join(server.said)
        assert "correct" not in "".join(server.said)
        local = server.url.replace(EVERYWHERE, "127.0.0.1")
        with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=local, api_key="x") as client:
            client.models.list()
        with openai.OpenAI(base_url=local, api_key="correct horse battery") as client:
            assert len(client.models.list().data) == 3
    finally:
        server.stop()


@llama_files.needs_llama
def test_llama_cpp_serves_the_base_and_every_adapter(tmp_path):
    base = llama_files.write_base(tmp_path)
    for seed, name in enumerate(("one", "two"), 1):
        llama_files.write_adapter(tmp_path / "runs" / name, base, seed)
    server = Server(tmp_path, "--model_name", base, "--engine", "llamacpp", "--context", 128)
    try:
        assert "engine: llamacpp" in "".join(server.said)
        with openai.OpenAI(base_url=server.url, api_key="x", max_retries=0) as client:
            said = {}
            for name in ("qwen2", "one", "two"):
                for temperature in (0.0, 1.0):
                    answer = client.chat.completions.create(
                        model=name, messages=[{"role": "system", "content": "Да."}, *MESSAGES], seed=3,
                        temperature=temperature, max_tokens=12,
                    )  # fmt: skip
                    said[name, temperature] = answer.choices[0].message.content
    finally:
        assert server.stop()[0] == 0
    assert len(set(said.values())) > 4  # random weights may end an answer at once
    for (name, temperature), text in said.items():
        run = None if name == "qwen2" else Run(tmp_path / "runs" / name)
        expert = open_expert(ModelOptions(model_name=str(base)), run, "", "llamacpp")
        sample = serving.SampleOptions(temperature=temperature, max_new_tokens=12)
        with expert.speaking(expert.voices[-1]) as engine:
            found = "".join(engine.stream(Request(tuple(dialogue("Что такое PLA?", "Да.")), sample, 3)))
        expert.close()
        assert found == text

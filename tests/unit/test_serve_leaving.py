"""Answers that come to no end: clients that leave, models that fail, time that runs out, servers that stop."""

import contextlib
import http.client
import json
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from fastapi import FastAPI

import llama_files
import serving
from serving import Paced, asked, events, open_service, raw, running, served, wait_until
from znatok.errors import ModelError
from znatok.serve.run import quiet_signals
from znatok.serve.server import Server

ORDER = {"model": "base", "messages": [{"role": "user", "content": "Что такое PLA?"}], "max_tokens": 100}
ENGINES = ["torch", pytest.param("llamacpp", marks=llama_files.needs_llama)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A base for each engine."""
    folder = tmp_path_factory.mktemp("leaving")
    return {
        "torch": serving.write_world(folder, names=())[0],
        "llamacpp": llama_files.write_base(folder).rename(folder / "base.gguf"),
    }


def opened(bases, engine="torch", **options):
    """Return a service whose one model is called base."""
    dtype = "float32" if engine == "torch" else "auto"
    return open_service(bases[engine], None, engine=engine, dtype=dtype, **options)


def slowed(service, monkeypatch, seconds=0.02):
    """Make every token of a service take its time."""
    desk = type(service.dispatcher._desk)
    step = desk.step
    monkeypatch.setattr(desk, "step", lambda *turn: time.sleep(seconds) or step(*turn))


def failing(service, monkeypatch, error, after=3):
    """Make the model fail once some tokens are said."""
    desk = type(service.dispatcher._desk)
    step, steps = desk.step, []

    def fail(desk, together):
        steps.append(1)
        if len(steps) > after:
            raise error
        step(desk, together)

    monkeypatch.setattr(desk, "step", fail)


def sent(url, **changes):
    """Send an order and return the connection, without waiting for a reply."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    body = json.dumps({**ORDER, **changes})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return connection


def is_counted(url, outcome):
    """Tell whether one request has ended like that."""
    return f'model="base",outcome="{outcome}"}} 1.0' in raw(url, "GET", "/metrics")[2].decode()


# Clients that leave


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_after_a_client_has_left_at_most_one_more_token_is_said(bases, monkeypatch, engine, stream, n):
    service = opened(bases, engine)
    pace = Paced(service, monkeypatch)
    with served(service) as url:
        connection = sent(url, stream=stream, n=n, seed=1)
        pace.go(3)
        wait_until(lambda: pace.steps == 3)
        assert service.dispatcher.running > 0
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        wait_until(lambda: is_counted(url, "cancelled"))
        pace.go(100)
        wait_until(lambda: service.dispatcher.running == service.dispatcher.waiting == 0)
        assert pace.steps <= 4
        assert asked(url, {**ORDER, "max_tokens": 3})[0] == 200  # there is room again


def test_whoever_leaves_the_queue_is_never_begun(bases, monkeypatch):
    service = opened(bases)
    pace = Paced(service, monkeypatch)
    with served(service) as url:
        first = sent(url, n=8)
        wait_until(lambda: service.dispatcher.running == 8)
        second = sent(url, n=2)
        wait_until(lambda: service.dispatcher.waiting == 2)
        second.close()
        wait_until(lambda: is_counted(url, "cancelled"))
        pace.go()
        assert first.getresponse().status == 200
        assert (pace.begun, service.dispatcher.waiting) == (8, 0)
        first.close()


# Models that fail


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModelError("no run is chosen; train one first"), "no run is chosen; train one first"),
        (ZeroDivisionError(), "the server failed: ZeroDivisionError"),
    ],
    ids=["ours", "a bug"],
)
@pytest.mark.parametrize("n", [1, 2])
def test_a_fault_in_the_middle_of_a_stream_is_its_last_event(bases, monkeypatch, capfd, error, said, n):
    service = opened(bases)
    failing(service, monkeypatch, error)
    with served(service) as url:
        status, _headers, body = raw(url, body=json.dumps({**ORDER, "stream": True, "n": n}).encode())
        *before, last = events(body)
        assert status == 200
        assert last == {"error": {"message": said, "type": "server_error", "param": None, "code": None}}
        assert any(event["choices"][0]["delta"].get("content") for event in before)
        wait_until(lambda: service.dispatcher.running == 0)
    assert ("Traceback" in capfd.readouterr().err) == isinstance(error, ZeroDivisionError)  # for whoever mends it


def test_the_official_client_raises_what_ends_a_stream(bases, monkeypatch):
    service = opened(bases)
    failing(service, monkeypatch, ModelError("no run is chosen; train one first"))
    with served(service) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(**ORDER, stream=True)
        with pytest.raises(openai.APIError, match="no run is chosen"):
            list(stream)


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_ends_with_the_usage_of_all_its_answers_and_done(bases, n):
    with served(opened(bases)) as url:
        order = {**ORDER, "max_tokens": 5, "n": n, "seed": 1}
        whole = asked(url, order)[1]["usage"]
        order |= {"stream": True, "stream_options": {"include_usage": True}}
        *before, usage, done = events(raw(url, body=json.dumps(order).encode())[2])
    assert done == "[DONE]"
    assert (usage["choices"], usage["usage"]) == ([], whole)
    assert whole["completion_tokens"] == 5 * n
    assert {event["usage"] for event in before} == {None}


# Queues and clocks


def test_more_answers_than_the_queue_holds_are_refused_for_good(bases):
    with served(opened(bases, queue=2)) as url:
        status, headers, body = raw(url, body=json.dumps({**ORDER, "n": 3}).encode())
        error = json.loads(body)["error"]
        assert (status, error["param"], error["code"]) == (400, "n", "invalid_value")
        assert error["message"] == "n 3: the queue holds 2; ask for fewer answers at once"
        assert "retry-after" not in headers  # waiting would not help
        assert asked(url, {**ORDER, "n": 2, "max_tokens": 2})[0] == 200


def test_whoever_waits_in_the_queue_too_long_is_told_so_and_never_begun(bases, monkeypatch):
    service = opened(bases)
    pace = Paced(service, monkeypatch)
    with served(service) as url:
        first = sent(url, n=8)
        wait_until(lambda: service.dispatcher.running == 8)
        second = sent(url)
        wait_until(lambda: service.dispatcher.waiting == 1)
        pace.let_time_run_out()
        for connection in (first, second):
            reply = connection.getresponse()
            assert (reply.status, json.loads(reply.read())["error"]["type"]) == (504, "server_error")
            connection.close()
        wait_until(lambda: service.dispatcher.running == 0)
        assert pace.begun == 8


@llama_files.needs_llama
def test_llama_cpps_time_runs_out_too(bases, monkeypatch):
    service = opened(bases, "llamacpp")
    pace = Paced(service, monkeypatch)
    with served(service) as url, contextlib.closing(sent(url)) as connection:
        pace.go(3)
        wait_until(lambda: pace.steps == 3)
        pace.let_time_run_out()
        assert connection.getresponse().status == 504
        wait_until(lambda: service.dispatcher.running == 0)
        pace.go()
        assert asked(url, {**ORDER, "max_tokens": 1})[0] == 200


@llama_files.needs_llama
@pytest.mark.parametrize("stream", [False, True])
def test_llama_cpp_tells_no_probabilities_and_says_so(bases, stream):
    with served(opened(bases, "llamacpp")) as url:
        status, body = asked(url, {**ORDER, "logprobs": True, "stream": stream})
        assert (status, body["error"]["param"]) == (400, "logprobs")
        assert "start the server with --engine torch" in body["error"]["message"]


def test_what_comes_to_nothing_leaves_no_thread_and_no_connection(bases, monkeypatch):
    service = opened(bases, queue=2, timeout=0.2)
    slowed(service, monkeypatch, 0.05)
    with running(service) as (server, url):
        before = threading.active_count()
        for _number in range(5):
            assert asked(url, {**ORDER, "n": 3})[0] == 400
            assert asked(url, {**ORDER, "n": 2})[0] == 504
            sent(url, stream=True).close()
        wait_until(lambda: service.dispatcher.running == service.dispatcher.waiting == 0)
        wait_until(lambda: not server.server_state.connections and not server.server_state.tasks)
        wait_until(lambda: threading.active_count() <= before)


# Servers that stop


@pytest.mark.parametrize("twice", [False, True], ids=["patience ends", "a second signal"])
def test_a_server_that_stops_tells_those_it_gives_up(bases, monkeypatch, capfd, twice):
    service = opened(bases)
    pace = Paced(service, monkeypatch)
    monkeypatch.setattr("znatok.serve.server.FAREWELL", 20.0)
    with running(service, patience=3600.0 if twice else 0.2) as (server, url), ThreadPoolExecutor(2) as pool:
        whole = pool.submit(raw, url, body=json.dumps({**ORDER, "n": 7}).encode())
        wait_until(lambda: service.dispatcher.running == 7)
        connection = sent(url, stream=True)
        wait_until(lambda: service.dispatcher.running == 8)
        pace.go(20)
        stream = connection.getresponse()  # its first words are said: it can't be refused by a status any more
        waiting = pool.submit(raw, url, body=json.dumps({**ORDER, "n": 2}).encode())
        wait_until(lambda: service.dispatcher.waiting > 0)
        began = time.monotonic()
        for _signal in range(1 + twice):
            server.handle_exit(signal.SIGTERM, None)
        refused = [reply.result(20) for reply in (whole, waiting)]
        heard = events(stream.read())
        connection.close()
        assert time.monotonic() - began < 60
        with pytest.raises(ConnectionError):
            raw(url, "GET", "/health")
    for status, _headers, body in refused:
        assert (status, json.loads(body)["error"]["message"]) == (503, "the server is stopping")
    assert heard[-1]["error"]["message"] == "the server is stopping"
    assert server.given_up == 3
    assert "Traceback" not in capfd.readouterr().err


def test_nobody_who_does_not_finish_asking_keeps_a_server_from_stopping(bases, monkeypatch, capfd):
    monkeypatch.setattr("znatok.serve.server.FAREWELL", 0.2)
    began = time.monotonic()
    with running(opened(bases), patience=0.2) as (server, url), contextlib.ExitStack() as stack:
        host, port = url.removeprefix("http://").split(":")
        request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        for begun in (b"", b"GET /hea", request + b"Content-Length: 99\r\n\r\n{"):
            one = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            one.sendall(begun)
        wait_until(lambda: len(server.server_state.tasks) == 1)
        server.handle_exit(signal.SIGTERM, None)
        with contextlib.suppress(ConnectionError):
            assert one.recv(100) == b""
    assert time.monotonic() - began < 10
    said = capfd.readouterr().err
    assert not re.search("Traceback|Exception", said)


def test_a_signal_that_comes_before_the_server_runs_is_not_lost(capfd):
    server = Server(FastAPI(), 10.0)
    with quiet_signals(server.handle_exit):
        signal.raise_signal(signal.SIGTERM)
        server.run(sockets=[])  # returns at once
    assert capfd.readouterr().err == ""
